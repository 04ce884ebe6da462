"""The samples of a run, packed once by rank 0 for all ranks, if their processor has something to pack."""

from dataclasses import replace
from pathlib import Path

from ddp_ft.contracts import LabelledSource, Log, Packing
from ddp_ft.data.packed import PART, Part, digest_of, end_of, keep, load, pack, read_samples, remove_others
from ddp_ft.data.packed_source import PackedSource, with_parts
from ddp_ft.errors import reason_of
from ddp_ft.run_folder.shared import appears
from ddp_ft.texts import plural, sample_noun
from ddp_ft.training.run import Run

FOLDER = Path("cache/packed")


def pack_samples(run: Run, log: Log) -> Run:
    """Return the run with its sets packed; the same if there is nothing to pack. Collective; raises StopAgreed if all
    ranks were asked to stop, and the next start has the parts that are complete."""
    packing, splits = run.model.processor.packing(), run.splits
    if packing is None:
        return run
    packer = Packer(run, packing)
    train, val = packer.packed(splits.train), packer.packed(splits.val)
    test = splits.test and packer.packed(splits.test)
    packer.finish()
    if packer.made and not packer.trouble:
        log(f"Prepared {plural(packer.made, sample_noun(train.kind))}; later starts find them in {packer.folder}.")
    if packer.trouble:
        log(f"Warning: {packer.folder} cannot be written to ({packer.trouble}); the next start prepares them again.")
    return replace(run, splits=replace(splits, train=train, val=val, test=test))


class Packer:
    """Packs sets into the run folder, or finds them there. Rank 0 works, and the others then read what it wrote; where
    it cannot write, each rank packs in memory."""

    def __init__(self, run: Run, packing: Packing) -> None:
        self.run, self.packing = run, packing
        self.folder = run.folder.path / FOLDER / packing.key()
        self.made, self.trouble = 0, ""
        self._names: list[str] = []

    def packed(self, source: LabelledSource) -> LabelledSource:
        """Return the set with its samples packed. Collective; may raise StopAgreed."""
        return with_parts(source, self._packed)

    def finish(self) -> None:
        """On rank 0: remove what earlier data or another tokenizer has left."""
        if self.run.world.is_main:
            remove_others(self.folder, self._names)

    def _packed(self, source: LabelledSource) -> LabelledSource:
        starts, world = range(0, len(source), PART), self.run.world
        pieces = [range(start, min(start + PART, len(source))) for start in starts]
        made = [self._part(source, places) for places in self.run.agreement.in_rounds(pieces, len(pieces))]
        names = world.from_main(lambda: [name for name, _ in made])
        found = zip(made, names, pieces, strict=True)
        parts = [part or self._read(source, name, places) for (_, part), name, places in found]
        return PackedSource(source, parts, self.packing.measure)

    def _part(self, source: LabelledSource, places: range) -> tuple[str, Part | None]:
        """On rank 0 the part and the name by which others find it, "" if they cannot; elsewhere nothing."""
        if not self.run.world.is_main:
            return "", None
        samples = read_samples(source, self.packing, places)
        name = digest_of(self.packing, samples)
        if (part := load(self.folder, name, check=True)) is None:
            part, self.made = pack(self.packing, samples), self.made + len(samples)
            try:
                keep(self.folder, name, part)
            except OSError as error:
                self.trouble = reason_of(error)
                return "", part
            part = load(self.folder, name, check=False) or part  # through a memory map
        self._names.append(name)
        return name, part

    def _read(self, source: LabelledSource, name: str, places: range) -> Part:
        """Off rank 0: the part that it wrote."""
        if name and appears(end_of(self.folder, name)) and (part := load(self.folder, name, check=False)):
            return part
        return pack(self.packing, read_samples(source, self.packing, places))
