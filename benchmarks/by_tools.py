"""The same fine-tuning with Lightning, Accelerate and the Trainer of transformers, by their guides.

`best` adds what each offers for speed: channels_last if ddp_ft has it, workers that stay, no bar, no logger, no read
from the device in each step.
"""

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.by_the_book import Normalise, Place, image_folder, loader_options, to_channels_last
from benchmarks.workload import Clock, Outcome, Workload, adamw, build


def _autocasts(workload: Workload) -> bool:
    return workload.precision == "bf16"


def with_lightning(workload: Workload, best: bool = False) -> Outcome:
    """Lightning: a LightningModule and a Trainer, DDP as its strategy."""
    import lightning

    class Classifier(lightning.LightningModule):
        def __init__(self, module: nn.Module, normalise: Any, format_: torch.memory_format) -> None:
            super().__init__()
            self.module, self.normalise, self.format = module, normalise, format_

        def training_step(self, batch: Any, _index: int) -> Tensor:
            images, labels = batch
            inputs = images.to(memory_format=self.format)
            loss = F.cross_entropy(
                self.module(self.normalise(inputs)), labels, label_smoothing=workload.label_smoothing
            )
            if not best:
                self.log("train_loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            return adamw(workload, self.module, fused=best)

    class Timer(lightning.Callback):
        def __init__(self) -> None:
            self.clock = Clock(workload.device)

        def on_train_batch_end(self, *_args: Any, **_options: Any) -> None:
            self.clock.tick(workload.global_batch)

    built = build(workload)
    place, timer = Place(workload), Timer()
    model = Classifier(built.module, Normalise(built.processor.preprocess, place.device), _format(built.module, best))
    loader = DataLoader(
        image_folder(workload, built.processor.preprocess, best),
        workload.batch,
        shuffle=True,
        **loader_options(workload, best),
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            default_root_dir=folder,
            max_epochs=workload.epochs,
            accelerator="gpu" if workload.device == "cuda" else "cpu",
            devices=workload.processes,
            strategy="ddp" if workload.processes > 1 else "auto",
            precision="bf16-mixed" if _autocasts(workload) else "32-true",
            callbacks=[timer],
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=not best,
            logger=False if best else None,
            benchmark=best or None,
        )
        model.to(memory_format=_format(built.module, best))
        trainer.fit(model, loader)
        return timer.clock.stop(f"lightning {lightning.__version__}")


def _format(module: nn.Module, best: bool) -> torch.memory_format:
    return to_channels_last(module) if best else torch.contiguous_format


def with_accelerate(workload: Workload, best: bool = False) -> Outcome:
    """Accelerate: a plain loop, whose parts `prepare` has wrapped."""
    import accelerate

    accelerator = accelerate.Accelerator(
        mixed_precision="bf16" if _autocasts(workload) else "no", cpu=workload.device == "cpu"
    )
    torch.backends.cudnn.benchmark = best
    built = build(workload)
    format_ = _format(built.module, best)
    normalise = Normalise(built.processor.preprocess, accelerator.device)
    data = image_folder(workload, built.processor.preprocess, best)
    plain_loader = DataLoader(data, workload.batch, shuffle=True, **loader_options(workload, best))
    module = built.module.to(memory_format=format_)
    model, optimizer, loader = accelerator.prepare(module, adamw(workload, module, fused=best), plain_loader)
    clock, running = Clock(workload.device), 0.0
    model.train()
    for _epoch in range(workload.epochs):
        for images, labels in loader:
            outputs = model(normalise(images.to(memory_format=format_)))
            loss = F.cross_entropy(outputs, labels, label_smoothing=workload.label_smoothing)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if not best:
                running += loss.item()
            clock.tick(len(labels) * accelerator.num_processes)
    outcome = clock.stop(f"accelerate {accelerate.__version__}")
    accelerator.end_training()
    return outcome


class _WithLoss(nn.Module):
    """What the Trainer of transformers calls: inputs by name, outputs with a loss."""

    def __init__(self, module: nn.Module, normalise: Any, format_: torch.memory_format, smoothing: float) -> None:
        super().__init__()
        self.module, self.normalise, self.format, self.smoothing = module, normalise, format_, smoothing

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.module(self.normalise(pixel_values.to(memory_format=self.format)))
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=self.smoothing), "logits": logits}


def _by_name(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def with_transformers(workload: Workload, best: bool = False) -> Outcome:
    """The Trainer of transformers, on a module that returns its loss."""
    import transformers

    class Timer(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.clock = Clock(workload.device)

        def on_step_end(self, *_args: Any, **_options: Any) -> None:
            self.clock.tick(workload.global_batch)

    built, place, timer = build(workload), Place(workload), Timer()
    format_ = _format(built.module, best)
    normalise = Normalise(built.processor.preprocess, place.device)
    model = _WithLoss(built.module, normalise, format_, workload.label_smoothing).to(memory_format=format_)
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(folder, **_arguments(workload, best)),
            train_dataset=image_folder(workload, built.processor.preprocess, best),
            data_collator=_by_name,
            callbacks=[timer],
        )
        trainer.train()
    return timer.clock.stop(f"transformers {transformers.__version__}")


def _arguments(workload: Workload, best: bool) -> dict[str, Any]:
    arguments = {
        "num_train_epochs": workload.epochs,
        "per_device_train_batch_size": workload.batch,
        "learning_rate": workload.lr,
        "weight_decay": workload.weight_decay,
        "bf16": _autocasts(workload),
        "use_cpu": workload.device == "cpu",
        "dataloader_num_workers": workload.workers,
        "save_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "logging_steps": 10,
    }
    if best:
        staying = {"dataloader_persistent_workers": True} if workload.workers else {}
        # No clipping and no look for NaN: each is a reading of the device in every step.
        arguments |= {"max_grad_norm": 0.0, "logging_nan_inf_filter": False, "disable_tqdm": True, **staying}
    return arguments
