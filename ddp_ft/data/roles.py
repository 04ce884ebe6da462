"""The roles of parts of the data, and the names of folders and values for them."""

TRAIN, VAL, TEST = "train", "val", "test"
VAL_NAMES = ("val", "valid", "validation")
ROLES = {TRAIN: TRAIN, TEST: TEST} | dict.fromkeys(VAL_NAMES, VAL)
# All samples, of whatever part.
ALL = "all"
