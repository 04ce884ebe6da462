"""`ddp-ft` as a module, which the tests' commands are."""

from ddp_ft.cli.main import main

if __name__ == "__main__":
    main()
