"""Sources, inspection, decoding, transforms, the global order of samples, and the loaders."""

from ddp_ft.data.damage import scan
from ddp_ft.data.decode import decode
from ddp_ft.data.folder import FileSource, FolderSource, open_folder
from ddp_ft.data.inspect import list_pictures
from ddp_ft.data.loader import EvalLoader, Portion, TrainLoader, default_workers
from ddp_ft.data.sampler import GlobalOrderSampler, derive_seed, even_share
from ddp_ft.data.splits import Splits, open_splits
from ddp_ft.data.transforms import DeviceTransform, Transform, eval_transform, train_transform

__all__ = [
    "DeviceTransform",
    "EvalLoader",
    "FileSource",
    "FolderSource",
    "GlobalOrderSampler",
    "Portion",
    "Splits",
    "TrainLoader",
    "Transform",
    "decode",
    "default_workers",
    "derive_seed",
    "eval_transform",
    "even_share",
    "list_pictures",
    "open_folder",
    "open_splits",
    "scan",
    "train_transform",
]
