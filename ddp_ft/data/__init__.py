"""Sources, inspection, decoding, transforms, the global order of samples, and the loaders."""

from ddp_ft.data.counts import ClassCounts, count_classes
from ddp_ft.data.damage import scan
from ddp_ft.data.decode import decode, decode_by_pillow
from ddp_ft.data.device import DeviceTransform
from ddp_ft.data.encoded import NVJPEG, EncodedTransform, check_nvjpeg
from ddp_ft.data.folder import FileSource, FolderSource, open_folder
from ddp_ft.data.headers import glance
from ddp_ft.data.inputs import list_pictures
from ddp_ft.data.loader import EvalLoader, Portion, TrainLoader, default_workers
from ddp_ft.data.mixing import Mixing
from ddp_ft.data.parts import open_part
from ddp_ft.data.recut import Recut
from ddp_ft.data.sampler import GlobalOrderSampler, even_share
from ddp_ft.data.sampling import sampling_weights
from ddp_ft.data.seeds import derive_seed, drawing_from, seed_masks
from ddp_ft.data.skipping import left_out, lenient, path_of
from ddp_ft.data.splits import Splits, open_splits
from ddp_ft.data.transforms import Transform, eval_transform, train_transform

__all__ = [
    "NVJPEG",
    "ClassCounts",
    "DeviceTransform",
    "EncodedTransform",
    "EvalLoader",
    "FileSource",
    "FolderSource",
    "GlobalOrderSampler",
    "Mixing",
    "Portion",
    "Recut",
    "Splits",
    "TrainLoader",
    "Transform",
    "check_nvjpeg",
    "count_classes",
    "decode",
    "decode_by_pillow",
    "default_workers",
    "derive_seed",
    "drawing_from",
    "eval_transform",
    "even_share",
    "glance",
    "left_out",
    "lenient",
    "list_pictures",
    "open_folder",
    "open_part",
    "open_splits",
    "path_of",
    "sampling_weights",
    "scan",
    "seed_masks",
    "train_transform",
]
