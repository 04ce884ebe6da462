"""What a part of the data is for, and the names of folders and values that say so."""

TRAIN, VAL, TEST = "train", "val", "test"
VAL_NAMES = ("val", "valid", "validation")
ROLES = {TRAIN: TRAIN, TEST: TEST} | dict.fromkeys(VAL_NAMES, VAL)
# All samples that there are, whatever part they are of.
ALL = "all"
