"""`ddp-ft fetch MODEL`: download pretrained weights where there is a network, for machines without one."""

import click

from ddp_ft.cli.completion import complete_model
from ddp_ft.cli.output import print_note


@click.command()
@click.argument("model", shell_complete=complete_model)
def fetch(model: str) -> None:
    """Download the pretrained weights of MODEL into the cache of its library.

    Run it on a login node; then compute nodes with the same home folder need no network.
    """
    from ddp_ft import models

    print_note(models.fetch(model))
