"""A stage that counts the words on the pictures of each image shard: one file, and one line that imports it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from data_specs import storage
from data_specs.records import Identity, InputRead, Outcome, Sample, ShardUnit
from data_specs.shards import Shard
from data_specs.spec import Spec
from pipeline.follow import plan_by_shards
from pipeline.stages import Option, Output, UnitStage, Work, register
from pipeline.workers import Workers


class CountWords(UnitStage):
    """Image shards to shards of counts."""

    name = "count-words"
    title = "Counts the words of each picture (ROOT/words/{train,val})."
    reads = ("render",)
    makes = "words/{train,val}"
    computes = False
    options = (Option("longest", "letters of the longest word that counts", 100, int),)

    def outputs(self, spec: Spec, root: str, workers: Workers, longest: int = 100, **_: Any) -> Iterator[Output]:
        for split in ("train", "val"):
            images = storage.join(root, "images", split)
            identity = Identity(stage=self.name, split=split, spec={"longest": longest})
            plan = plan_by_shards(storage.join(root, "words", split), identity, images, split)
            yield Output(plan, spec, partial(counting, images, longest))


def counting(images_uri: str, longest: int) -> Work:
    def work(unit: ShardUnit) -> Iterator[Outcome]:
        if unit.shard and unit.sha256:
            shard = Shard(storage.join(images_uri, unit.shard), unit)
            yield InputRead(sha256=unit.sha256)
            for number in range(len(shard)):
                words = json.loads(shard.fields(number)["json"])["text"].split()
                count = {"counted": sum(len(word) <= longest for word in words)}
                yield Sample(shard.key(number), {"cls": b"0", "json": json.dumps(count).encode()})

    return work


register(CountWords())
