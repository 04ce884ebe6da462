"""`ddp-ft` as a module, which the tests' commands are."""

from ddp_ft.cli import main

if __name__ == "__main__":
    main()
