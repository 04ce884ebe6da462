"""ddp_ft: fine-tune pretrained vision models on one CPU, one GPU or many nodes with one command."""

__version__ = "0.1.0"
