"""Tokens a second on texts of mixed length: ddp_ft.train, transformers' Trainer and the limit, in turn.

`python -m benchmarks.texts_speed MODEL_FOLDER TEXTS_FOLDER`. The model is a folder of transformers; the texts are
folders of .txt, of which prefixes of random length are taken. Each program trains the same model on the same texts, two
processes with one thread each, and counts tokens without padding in the steps after the first ones. The limit is the
same network on the batches of ddp_ft, which lie in memory as tensors, in DistributedDataParallel with fused AdamW.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import click

PROCESSES, WARM_UP = 2, 4
# Words of a text: half have up to 60, one in twenty more than 230.
MEDIAN_WORDS, SPREAD = 60, 0.8


@click.group()
def cli() -> None:
    """See the module."""


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("texts", type=click.Path(path_type=Path))
@click.option("--count", default=640, show_default=True)
@click.option("--batch", default=16, show_default=True, help="Texts a step, of both processes.")
@click.option("--length", default=256, show_default=True, help="The most tokens of a text.")
@click.option("--rounds", default=3, show_default=True)
def compare(model: Path, texts: Path, count: int, batch: int, length: int, rounds: int) -> None:
    """Measure all in turn, and print tokens a second with their ratios to the limit."""
    with tempfile.TemporaryDirectory() as aside:
        setting = {"model": str(model.absolute()), "batch": batch, "length": length, "folder": aside}
        write_texts(Path(aside) / "data.jsonl", texts, count)
        Path(aside, "setting.json").write_text(json.dumps(setting))
        found: dict[str, list[float]] = {}
        for number in range(rounds):
            for name in ("limit", "ours", "ours_any_order", "trainer", "trainer_by_length"):
                found.setdefault(name, []).append(_measured(name, Path(aside)))
                click.echo(f"round {number + 1}: {name:18s} {found[name][-1]:8.0f} tokens/s", err=True)
        for name, speeds in found.items():
            ratios = [speed / limit for speed, limit in zip(speeds, found["limit"], strict=True)]
            click.echo(
                f"| {name} | {median(speeds):.0f} | {median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} |"
            )


def write_texts(file: Path, texts: Path, count: int) -> None:
    """JSON lines of prefixes of random length, and a second file of a few for validation."""
    draw, rows = random.Random(0), []
    for path in draw.sample(sorted(texts.rglob("*.txt")), count):
        words = path.read_text(encoding="utf-8", errors="replace").split()
        most = max(3, round(MEDIAN_WORDS * 2.718 ** draw.gauss(0, SPREAD)))
        rows.append({"text": " ".join(words[:most]), "label": path.parent.name, "split": "train"})
    rows += [{**row, "text": f"{row['text']} again", "split": "val"} for row in rows[:20]]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _measured(name: str, aside: Path) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}", "-m"]
    words = _ours(name, aside) if name.startswith("ours") else ["benchmarks.texts_speed", name, str(aside)]
    done = subprocess.run([*torchrun, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{name} failed:\n{done.stderr[-3000:]}")
    if name.startswith("ours"):
        return float(json.loads((aside / name / "summary.json").read_text())["tokens_per_second"])
    return float((aside / f"{name}.txt").read_text())


def _ours(name: str, aside: Path) -> list[str]:
    setting = json.loads((aside / "setting.json").read_text())
    subprocess.run(["rm", "-rf", str(aside / name)], check=True)
    keys = {
        "data.max_length": setting["length"], "data.bucket_by_length": str(name == "ours").lower(),
        "log.report": "false", "log.pictures": "false", "log.every_steps": 5,
        "checkpoint.every_steps": 0, "model.image_size": "auto", "ema.decay": 0, "optim.layer_decay": 1,
    }  # fmt: skip
    options = {
        "--data": aside / "data.jsonl", "--model": f"transformers/{setting['model']}", "--recipe": "full",
        "--epochs": 1, "--batch-size": setting["batch"], "--lr": 1e-5, "--device": "cpu",
        "--run-dir": aside / name, "--workers": 1,
    }  # fmt: skip
    sets = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    return ["ddp_ft.train", *(str(word) for pair in options.items() for word in pair), *sets]


class Clock:
    """Counts the tokens of steps after the first ones, of all processes."""

    def __init__(self) -> None:
        self.steps, self.tokens, self.began, self.ended = 0, 0, 0.0, 0.0

    def tick(self, tokens: int) -> None:
        """After a step of so many tokens of this process."""
        self.steps, self.ended = self.steps + 1, time.perf_counter()
        if self.steps == WARM_UP:
            self.began = self.ended
        elif self.steps > WARM_UP:
            self.tokens += tokens

    def write(self, file: Path) -> None:
        """On rank 0 the tokens a second of all processes."""
        import torch
        import torch.distributed as dist

        total = torch.tensor(float(self.tokens), dtype=torch.float64)
        dist.all_reduce(total)
        if dist.get_rank() == 0:
            file.write_text(str(float(total) / (self.ended - self.began)))


def _tokenised(setting: dict[str, Any]) -> tuple[list[list[int]], list[int]]:
    from transformers import AutoTokenizer

    rows = [json.loads(line) for line in Path(setting["folder"], "data.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "train"]
    names = sorted({row["label"] for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(setting["model"])
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=setting["length"])["input_ids"]
    return ids, [names.index(row["label"]) for row in rows]


def _model(setting: dict[str, Any], classes: int) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(1)
    return AutoModelForSequenceClassification.from_pretrained(setting["model"], num_labels=classes)


@cli.command()
@click.argument("aside", type=click.Path(path_type=Path))
def limit(aside: Path) -> None:
    """The network alone, in DDP, on batches in memory."""
    import torch
    import torch.distributed as dist

    setting = json.loads((aside / "setting.json").read_text())
    dist.init_process_group("gloo")
    ids, labels = _tokenised(setting)
    module = torch.nn.parallel.DistributedDataParallel(_model(setting, 1 + max(labels)).train())
    optimizer, clock = torch.optim.AdamW(module.parameters(), 1e-5, fused=True), Clock()
    for batch in list(_batches(ids, labels, setting["batch"])):
        optimizer.zero_grad()
        module(**batch).loss.backward()
        optimizer.step()
        clock.tick(int(batch["attention_mask"].sum()))
    clock.write(aside / "limit.txt")
    dist.destroy_process_group()


def _batches(ids: list[list[int]], labels: list[int], size: int) -> Iterator[dict[str, Any]]:
    """This rank's batches in the order of ddp_ft."""
    import numpy as np
    import torch
    import torch.distributed as dist
    from torch.nn.utils.rnn import pad_sequence

    from ddp_ft.data.sampler import GlobalOrderSampler

    order = GlobalOrderSampler(len(ids), size, dist.get_world_size(), dist.get_rank(), seed=0)
    order.group_by_length(np.array([len(each) for each in ids], np.int32))
    for step in range(order.steps_per_epoch):
        rows = [address.index for address in order.share(step)]
        tokens = [torch.tensor(ids[row]) for row in rows]
        masks = [torch.ones_like(each) for each in tokens]
        padded = [pad_sequence(each, batch_first=True) for each in (tokens, masks)]
        yield {"input_ids": padded[0], "attention_mask": padded[1], "labels": torch.tensor([labels[r] for r in rows])}


@cli.command()
@click.argument("aside", type=click.Path(path_type=Path))
def trainer(aside: Path) -> None:
    """transformers' Trainer with its defaults."""
    _train_by_trainer(aside, "trainer", {})


@cli.command("trainer_by_length")
@click.argument("aside", type=click.Path(path_type=Path))
def trainer_by_length(aside: Path) -> None:
    """The same, with batches of texts of similar length."""
    _train_by_trainer(aside, "trainer_by_length", {"train_sampling_strategy": "group_by_length"})


def _train_by_trainer(aside: Path, name: str, more: dict[str, Any]) -> None:
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    setting = json.loads((aside / "setting.json").read_text())
    ids, labels = _tokenised(setting)
    rows = [{"input_ids": each, "labels": label, "length": len(each)} for each, label in zip(ids, labels, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(aside / name), per_device_train_batch_size=setting["batch"] // PROCESSES, num_train_epochs=1,
        learning_rate=1e-5, save_strategy="no", report_to=[], use_cpu=True, dataloader_num_workers=1, logging_steps=5,
        disable_tqdm=True, ddp_find_unused_parameters=False, **more,
    )  # fmt: skip
    clock, seen = Clock(), [0]
    padded = DataCollatorWithPadding(AutoTokenizer.from_pretrained(setting["model"]))

    class Counted(Trainer):  # type: ignore[misc]
        """Counts the tokens of the batch that a step takes."""

        def training_step(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
            seen[0] = int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *rest, **options)

    class Ticks(TrainerCallback):  # type: ignore[misc]
        """Looks at the clock after each step."""

        def on_step_end(self, *args: Any, **options: Any) -> None:
            clock.tick(seen[0])

    made = Counted(
        model=_model(setting, 1 + max(labels)), args=arguments, train_dataset=rows, data_collator=padded,
        callbacks=[Ticks()],
    )  # fmt: skip
    made.train()
    clock.write(aside / f"{name}.txt")


if __name__ == "__main__":
    cli()
