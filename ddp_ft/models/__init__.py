"""Models by name: timm, torchvision or the user's own file, with a head of the wanted size."""

from ddp_ft.config.forms import LINEAR
from ddp_ft.models.build import build_model, create_from_spec, model_names
from ddp_ft.models.weights import fetch, load_weights

__all__ = ["LINEAR", "build_model", "create_from_spec", "fetch", "load_weights", "model_names"]
