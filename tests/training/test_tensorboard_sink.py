"""What a training writes to event files: tests/training/test_trackers.py."""

from __future__ import annotations

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llmcls.recipe.load import load_recipe
from llmcls.results.dashboard import Dashboard, Table
from llmcls.results.run_folder import RunFolder
from llmcls.training.sink import TrackedRun
from llmcls.training.tensorboard_sink import open_tensorboard


def test_tables_are_texts_and_figures_are_images(write_recipe, tmp_path) -> None:
    run = RunFolder(tmp_path)
    sink = open_tensorboard(TrackedRun(run, load_recipe(write_recipe()), {"train": {"learning_rate": 0.5}}, 0))
    picture, cells = np.full((4, 6, 3), 255, dtype=np.uint8), (np.array([True, False]), np.array([0.9, 0.2]))
    sink.show(9, Dashboard({"tables/per_class": Table(["label"], [["a"]])}, {"figures/x": picture}, {"test/pr": cells}))
    sink.close()
    events = EventAccumulator(str(run.tensorboard), {"tensors": 0}).Reload()
    assert [(image.width, image.height, image.step) for image in events.Images("figures/x")] == [(6, 4, 9)]
    (table,) = events.Tensors("tables/per_class/text_summary")
    assert table.tensor_proto.string_val[0].decode() == "| label |\n| --- |\n| a |"
    assert "test/pr" in events.Tags()["tensors"]
    assert "learning_rate: 0.5" in events.Tensors("config/recipe/text_summary")[0].tensor_proto.string_val[0].decode()
