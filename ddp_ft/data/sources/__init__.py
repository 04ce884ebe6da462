"""Where samples and their targets are listed: folders of classes, tables, lists of files."""
