"""A run's folder: config.json, metrics.jsonl, and what is said when they are not as they should be."""

import contextlib
import dataclasses
import json
import pathlib

import pytest

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.runs.metadata import FORMAT, RunMetadata
from flaxresnet.runs.resume_check import config_diff
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError

INFO = RunMetadata(
    config=TrainConfig(
        model="resnet26", variant="keras", width=8, stem_relu=False, bn_momentum=0.8, epochs=3
    ).resolve(),
    class_names=("Fäuste", "五", "palm"),
    preprocessing=Preprocessing(64, 48, resize="lanczos", scale=0.1),
    data={
        "source": "signs.h5",
        "path": None,
        "train_fingerprint": "0123456789abcdef",
        "test_fingerprint": "fedcba9876543210",
    },
    versions={"python": "3.12.1", "jax": "0.7.0"},
)
FIGURES = (
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "learning_rate",
    "seconds",
    "images_per_second",
)
ROWS = [{"epoch": epoch, "step": 8 * epoch, **dict.fromkeys(FIGURES, 1.5 / epoch)} for epoch in (1, 2)]

# Another value of each option.
OTHER = {
    "data": "other.h5",
    "workdir": "elsewhere",
    "image_size": (96, 80),
    "max_corrupt_fraction": 0.5,
    "input": "stream",
    "workers": 3,
    "checkpoint_steps": 5,
    "shard_optimizer": True,
    "distributed": True,
    "coordinator_address": "host:1",
    "num_processes": 2,
    "process_id": 1,
    "epochs": 9,
    "batch_size": 4,
    "seed": 5,
    "recipe": "tutorial",
    "init": "other.h5",
    "freeze": "stem",
    "model": "resnet14",
    "variant": "torchvision",
    "width": 16,
    "stem_relu": True,
    "precision": "bfloat16",
    "learning_rate": 0.5,
    "schedule": "constant",
    "warmup_epochs": 2.5,
    "label_smoothing": 0.3,
    "aug_strength": 0.25,
    "aug_warmup_epochs": 1.5,
    "hflip": False,
    "bn_momentum": 0.7,
    "zero_init_residual": False,
    "freeze_backbone_epochs": 2.0,
    "layer_decay": 0.25,
    "precise_bn_images": 0,
    "freeze_bn_stats": True,
    "grad_accum_steps": 2,
    "ghost_batch_size": 2,
    "optimizer": "lamb",
    "weight_decay": 0.25,
    "clip_grad": 0.5,
    "ema": 0.5,
    "crop_min_area": 0.5,
    "crop_pct": 0.5,
    "auto_augment": "randaugment",
    "background_prob": 0.5,
    "random_erasing": 0.5,
    "mixup": 0.5,
    "cutmix": 0.5,
    "report": False,
    "tensorboard": True,
    "profile": True,
    "resume": False,
    "allow_config_changes": True,
    "verbose": True,
    "compilation_cache": False,
}

HARMLESS = [
    "data",
    "image_size",
    "max_corrupt_fraction",
    "workdir",
    "epochs",
    "precise_bn_images",
    "report",
    "tensorboard",
    "profile",
]
HARMLESS += [
    "resume",
    "verbose",
    "compilation_cache",
    "input",
    "workers",
    "checkpoint_steps",
    "shard_optimizer",
    "distributed",
]
HARMLESS += ["allow_config_changes", "coordinator_address", "num_processes", "process_id"]


def written(tmp_path, info=INFO):
    folder = RunDir(tmp_path / "runs" / "signs")
    folder.create(info)
    return folder


def changed(**options):
    return dataclasses.replace(INFO, config=dataclasses.replace(INFO.config, **options))


def difference(info, stored):
    """The first one, in words, if there is one."""
    return next((words for words, _ in config_diff(info, stored)), None)


def test_what_create_writes_read_info_reads(tmp_path):
    folder = written(tmp_path)
    assert folder.exists()
    assert RunDir(str(folder.path)).read_metadata() == INFO


def test_config_json_is_plain_json_that_describes_the_run(tmp_path):
    values = json.loads((written(tmp_path).path / "config.json").read_text())
    assert values == {
        "format": FORMAT,
        "config": INFO.config.to_json(),
        "class_names": ["Fäuste", "五", "palm"],
        "preprocessing": json.loads(json.dumps(INFO.preprocessing.to_json())),
        "data": {
            "source": "signs.h5",
            "path": None,
            "train_fingerprint": "0123456789abcdef",
            "test_fingerprint": "fedcba9876543210",
        },
        "versions": {"python": "3.12.1", "jax": "0.7.0"},
        "device": "",
    }


def test_create_replaces_the_old_text_and_leaves_no_other_file(tmp_path):
    folder = written(tmp_path)
    folder.create(changed(epochs=9))
    assert folder.read_metadata().config.epochs == 9
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]


def test_a_folder_without_config_json_holds_no_run(tmp_path):
    assert not RunDir(tmp_path).exists()
    message = r"holds no run \(no config\.json\); give the --workdir of a finished training"
    with pytest.raises(UserError, match=message) as caught:
        RunDir(tmp_path).read_metadata()
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(UserError, match=r"nowhere holds no run"):
        RunDir(tmp_path / "nowhere").read_metadata()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path, reason in ((tmp_path / "file", "Not a directory"), (tmp_path / "file" / "run", "Not a directory")):
        with pytest.raises(UserError) as caught:
            RunDir(path).create(INFO)
        assert str(caught.value) == f"--workdir {path} cannot be written: {reason}"


def test_the_model_is_that_of_the_configuration():
    model = INFO.model()
    assert model.num_classes == 3
    assert model.stage_sizes == (2, 2, 2, 2)
    assert model.width == 8
    assert model.stem_relu is False
    assert model.head == "average"
    assert model.frozen == ()
    assert changed(freeze="stage3,stem").model().frozen == ("stem", "stage3")
    assert changed(freeze="stage3, stem").model().frozen == ("stem", "stage3")
    assert changed(freeze="backbone").model().frozen == ("stem", "stage2", "stage3", "stage4", "stage5")
    assert model.momentum == 0.8


def test_the_model_of_options_left_to_the_recipe_has_the_recipes_momentum():
    info = dataclasses.replace(INFO, config=TrainConfig(recipe="tutorial"))
    assert info.model().momentum == 0.99


def test_a_run_does_not_differ_from_itself_read_back(tmp_path):
    assert difference(INFO, INFO) is None
    assert difference(INFO, written(tmp_path).read_metadata()) is None


def test_the_other_value_of_each_option_is_another():
    assert set(OTHER) == set(INFO.config.to_json())
    assert all(value != getattr(INFO.config, name) for name, value in OTHER.items())


@pytest.mark.parametrize("name", sorted(set(OTHER) - set(HARMLESS)))
def test_an_option_that_changes_training_is_a_difference(name):
    stored = getattr(INFO.config, name)
    assert difference(changed(**{name: OTHER[name]}), INFO) == f"--{name.replace('_', '-')} {stored}, not {OTHER[name]}"


@pytest.mark.parametrize("name", HARMLESS)
def test_an_option_that_does_not_change_training_is_no_difference(name):
    assert difference(changed(**{name: OTHER[name]}), INFO) is None


def test_other_classes_are_a_difference():
    new = dataclasses.replace(INFO, class_names=("palm", "五", "Fäuste"))
    assert difference(new, INFO) == "classes Fäuste, 五, palm, not palm, 五, Fäuste"


@pytest.mark.parametrize("changes", [{"height": 32}, {"scale": 1 / 255}, {"channels": "bgr"}], ids=str)
def test_other_preprocessing_is_a_difference(changes):
    new = dataclasses.replace(INFO, preprocessing=dataclasses.replace(INFO.preprocessing, **changes))
    assert difference(new, INFO) == "images of another size or scaling"


def test_other_training_data_are_a_difference_wherever_they_lie():
    new = dataclasses.replace(INFO, data=INFO.data | {"train_fingerprint": "f" * 64})
    assert difference(new, INFO) == "other training data (signs.h5)"
    moved = dataclasses.replace(INFO, data=INFO.data | {"source": "moved.h5"})
    assert difference(moved, INFO) is None


def test_what_keeps_weights_and_steps_as_they_are_may_go_on_when_told():
    def fits(info):
        return [fits for _, fits in config_diff(info, INFO)]

    assert fits(changed(learning_rate=OTHER["learning_rate"], aug_strength=OTHER["aug_strength"])) == [True, True]
    for name in ("model", "width", "optimizer", "batch_size", "grad_accum_steps", "ema", "freeze", "weight_decay"):
        assert fits(changed(**{name: OTHER[name]})) == [False], name
    assert fits(dataclasses.replace(INFO, class_names=INFO.class_names[::-1])) == [False]
    other = {"train_fingerprint": "f" * 64}
    assert fits(dataclasses.replace(INFO, data=INFO.data | other)) == [True]
    more = INFO.config.batch_size
    assert fits(dataclasses.replace(INFO, data=INFO.data | other | {"train_images": more})) == [False]
    assert fits(dataclasses.replace(INFO, data=INFO.data | {"test_fingerprint": "f" * 64})) == [True]


def test_other_versions_are_no_difference():
    assert difference(dataclasses.replace(INFO, versions={"python": "3.13.0"}), INFO) is None


def edited(**changes):
    return json.dumps(INFO.to_json() | changes)


def lacking(key):
    return json.dumps({name: value for name, value in INFO.to_json().items() if name != key})


DAMAGED = {
    "empty": ("", r"is damaged \(JSONDecodeError: .+\); restore it$"),
    "cut off": (edited()[:100], r"is damaged \(JSONDecodeError: .+\); restore it$"),
    "a list": ("[]", r"is damaged \(TypeError: .+\); restore it$"),
    "no format": (lacking("format"), r"is damaged \(KeyError: 'format'\); restore it$"),
    "format of another type": (edited(format="1"), r"is damaged \(TypeError: .+\); restore it$"),
    "no options": (lacking("config"), r"is damaged \(KeyError: 'config'\); restore it$"),
    "no class names": (lacking("class_names"), r"is damaged \(KeyError: 'class_names'\); restore it$"),
    "no preprocessing": (lacking("preprocessing"), r"is damaged \(KeyError: 'preprocessing'\); restore it$"),
    "no data": (lacking("data"), r"is damaged \(KeyError: 'data'\); restore it$"),
    "class names that are text": (
        edited(class_names="ab"),
        r"is damaged \(TypeError: class_names is 'ab', not a list of two or more different names\); restore it$",
    ),
    "data without a path": (
        edited(data={"source": "a", "train_fingerprint": "b", "test_fingerprint": "c"}),
        r"is damaged \(KeyError: 'data without path'\); restore it$",
    ),
    "no versions": (lacking("versions"), r"is damaged \(KeyError: 'versions'\); restore it$"),
    "options null": (edited(config=None), r"is damaged \(TypeError: .+\); restore it$"),
    "unknown preprocessing": (edited(preprocessing={"crop_min_area": 1}), r"is damaged \(TypeError: .+\); restore it$"),
    "unknown option": (
        edited(config={"epoch": 3}),
        r": unknown options \['epoch'\]; `flaxresnet train --help-all` lists",
    ),
    "wrong option": (edited(config={"epochs": 0}), r": --epochs must be at least 1, not 0$"),
    **{
        f"a field of another kind, {number}": (edited(**changes), rf"is damaged \(TypeError: {message}\); restore it$")
        for number, (changes, message) in enumerate(
            [
                ({"format": float("nan")}, "format is nan, not a whole number from 1"),
                ({"format": True}, "format is True, not a whole number from 1"),
                ({"config": []}, r"config is \[\], not an object"),
                ({"preprocessing": 5}, "preprocessing is 5, not an object"),
                ({"data": "x"}, "data is 'x', not an object"),
                ({"class_names": [[1], [2]]}, r"class_names is \[\[1\], \[2\]\], not a list of two or more .* names"),
                (
                    {"class_names": ["a", "a", "a"]},
                    r"class_names is \['a', 'a', 'a'\], not a list of two or more .* names",
                ),
                ({"class_names": ["a"]}, r"class_names is \['a'\], not a list of two or more different names"),
                ({"versions": {"jax": 1}}, r"versions is \{'jax': 1\}, not an object of texts"),
                ({"device": 1}, "device is 1, not text"),
                ({"data": INFO.data | {"source": 1}}, r"data\.source is 1, not text"),
                ({"data": INFO.data | {"path": 5}}, r"data\.path is 5, not text or null"),
                ({"data": INFO.data | {"path": ["x"]}}, r"data\.path is \['x'\], not text or null"),
                ({"data": INFO.data | {"test_fingerprint": 0}}, r"data\.test_fingerprint is 0, not text or null"),
                ({"data": INFO.data | {"train_images": "x"}}, r"data\.train_images is 'x', not a whole number"),
                ({"data": INFO.data | {"test_images": -1}}, r"data\.test_images is -1, not a whole number"),
                ({"data": INFO.data | {"streamed": 0}}, r"data\.streamed is 0, not true or false"),
            ]
        )
    },
    "brackets in brackets": ("[" * 200_000, r"is damaged \(RecursionError: .+\); restore it$"),
    "a width beyond all": (edited(config={"width": 10**30}), r": --width must be at most 4096, not 10+$"),
    "no such network": (
        edited(config={"model": "resnext50_32x4d", "width": 4}),
        r": --width 4 cannot be divided into the 32 groups of resnext50_32x4d; give a multiple of 16$",
    ),
    **{
        f"preprocessing with {name} {str(value)[:9]}": (
            edited(preprocessing=INFO.preprocessing.to_json() | {name: value}),
            rf": preprocessing has invalid {named}: ",
        )
        for name, value, named in (
            ("height", True, "height and width"),
            ("scale", 10**400, "scale, mean and std"),
            ("scale", True, "scale, mean and std"),
            ("mean", [10**400, 0, 0], "scale, mean and std"),
            ("mean", 5, "scale, mean and std"),
            ("std", [1, 1, "x"], "scale, mean and std"),
            ("crop_pct", True, "crop_pct"),
        )
    },
    "small images": (
        edited(preprocessing=INFO.preprocessing.to_json() | {"width": 8}),
        r": images of 64×8 pixels; the network needs 32×32 or more$",
    ),
    "older": (
        edited(format=FORMAT - 1),
        rf"has format {FORMAT - 1}, and this version reads format {FORMAT}; train again",
    ),
    "newer": (
        edited(format=FORMAT + 1),
        rf"has format {FORMAT + 1}, and this version reads format {FORMAT}; train again",
    ),
    "newer, with other fields": (f'{{"format": {FORMAT + 1}}}', rf"has format {FORMAT + 1}, and this version reads"),
}


@pytest.mark.parametrize(("text", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_config_json_that_cannot_be_used_is_named_once_with_the_reason(tmp_path, text, message):
    folder = written(tmp_path)
    (folder.path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        folder.read_metadata()
    assert str(caught.value).startswith(str(folder.path / "config.json"))
    assert str(caught.value).count("config.json") == 1
    assert "\n" not in str(caught.value)


def test_a_config_json_that_is_no_text_is_damaged(tmp_path):
    folder = written(tmp_path)
    (folder.path / "config.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match=r"config\.json is damaged \(UnicodeDecodeError: "):
        folder.read_metadata()


def test_metrics_are_read_as_they_were_written_and_appended(tmp_path):
    folder = written(tmp_path)
    assert folder.read_metrics() == []
    folder.write_metrics(ROWS[:1])
    folder.append_metrics(ROWS[1])
    assert folder.read_metrics() == ROWS
    assert [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()] == ROWS


def test_metrics_can_be_appended_to_a_file_that_is_not_there(tmp_path):
    folder = written(tmp_path)
    folder.append_metrics(ROWS[0])
    assert folder.read_metrics() == ROWS[:1]


def test_write_metrics_replaces_the_rows(tmp_path):
    folder = written(tmp_path)
    folder.write_metrics(ROWS)
    folder.write_metrics(ROWS[:1])
    assert folder.read_metrics() == ROWS[:1]
    folder.write_metrics([])
    assert folder.read_metrics() == []
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]


def test_a_torn_last_line_is_left_out_wherever_it_was_torn(tmp_path):
    folder = written(tmp_path)
    folder.write_metrics(ROWS)
    path = folder.path / "metrics.jsonl"
    whole = path.read_text()
    start = len(whole.splitlines()[0]) + 1
    for end in range(start, len(whole) - 1):  # the end of the line is the row's last mark
        path.write_text(whole[:end])
        assert folder.read_metrics() == ROWS[:1]
    path.write_text(whole[:-1])
    assert folder.read_metrics() == ROWS


NO_ROWS = ['{"epoch": 2, "st', "", "null", "[1, 2]", '"epoch"', "[" * 100_000, '{"epoch": 2}', '{"step": 16}']
NO_ROWS += [
    f'{{"epoch": {epoch}, "step": {step}}}'
    for epoch, step in (("null", 16), ('"x"', 16), ("2.0", 16), ("true", 16), (0, 16), (2, "[]"), (2, "null"), (2, -1))
]
NO_ROWS += [json.dumps({**ROWS[1], "epoch": epoch}) for epoch in (None, "x", 2.0, True, 0, 10**400)]
NO_ROWS += [json.dumps({**ROWS[1], "step": step}) for step in ([], None, -1, True)]
NO_ROWS += [json.dumps({name: value for name, value in ROWS[1].items() if name != left_out}) for left_out in ROWS[1]]
NO_ROWS += [json.dumps({**ROWS[1], name: bad}) for name in FIGURES for bad in (None, "x", [], True, float("nan"))]
NO_ROWS += [json.dumps({**ROWS[1], "test_loss": bad}) for bad in (float("inf"), -float("inf"), 10**400)]


@pytest.mark.parametrize("line", NO_ROWS, ids=range(len(NO_ROWS)))
def test_a_damaged_line_costs_its_own_row_alone_and_is_kept_before_the_rows_are_written_back(tmp_path, line):
    folder = written(tmp_path)
    first, second = (json.dumps(row) for row in ROWS)
    (folder.path / "metrics.jsonl").write_text(text := f"{first}\n{line}\n{second}\n")
    assert folder.read_metrics() == ROWS
    for _ in range(2):  # the second time nothing is damaged any more
        folder.write_metrics(folder.read_metrics())
    assert (folder.path / "metrics.jsonl").read_text() == f"{first}\n{second}\n"
    assert [path.name for path in (folder.path / "corrupt").iterdir()] == ["metrics.jsonl.1"]
    assert (folder.path / "corrupt" / "metrics.jsonl.1").read_text() == text


def test_what_was_kept_is_told(tmp_path):
    folder = written(tmp_path)
    assert folder.write_metrics(ROWS) is None
    (folder.path / "metrics.jsonl").write_text("{}\n")
    assert folder.write_metrics(ROWS) == folder.path / "corrupt" / "metrics.jsonl.1"
    assert folder.write_metrics(ROWS) is None


def test_metrics_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        RunDir(tmp_path).read_metrics()


def test_a_run_has_begun_where_more_than_its_description_is_there(tmp_path):
    folder = written(tmp_path)
    assert not folder.has_progress()
    (folder.path / "metrics.jsonl").write_text("\n")
    assert not folder.has_progress()
    (folder.path / "metrics.jsonl").write_text("x")
    assert folder.has_progress()
    (folder.path / "metrics.jsonl").unlink()
    for kind in (folder.checkpoints, folder.mid_epoch):
        (kind / "5").mkdir(parents=True)
        assert folder.has_progress()
        (kind / "5").rmdir()
    assert not folder.has_progress()


def test_a_second_damaged_file_is_kept_beside_the_first(tmp_path):
    folder = written(tmp_path)
    for _ in range(2):
        (folder.path / "metrics.jsonl").write_bytes(b"\xff\x85\n")
        folder.write_metrics([])
    assert sorted(path.name for path in (folder.path / "corrupt").iterdir()) == ["metrics.jsonl.1", "metrics.jsonl.2"]


def test_a_torn_last_line_is_gone_once_the_rows_are_written_back(tmp_path):
    folder = written(tmp_path)
    folder.write_metrics(ROWS)
    path = folder.path / "metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    folder.write_metrics(folder.read_metrics())
    folder.append_metrics(ROWS[1])
    assert folder.read_metrics() == ROWS
    assert not (folder.path / "corrupt").exists()


def test_set_aside_takes_the_first_free_number(tmp_path):
    for expected in ("signs.1", "signs.2"):
        folder = written(tmp_path)
        folder.append_metrics(ROWS[0])
        aside = folder.rename_old_run()
        assert aside == folder.path.with_name(expected)
        assert not folder.path.exists()
        assert RunDir(aside).read_metadata() == INFO
        assert RunDir(aside).read_metrics() == ROWS[:1]
    (tmp_path / "runs" / "signs.1").rename(tmp_path / "runs" / "kept")
    assert written(tmp_path).rename_old_run().name == "signs.1"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["kept", "signs.1", "signs.2"]


def test_set_aside_keeps_a_name_with_dots_and_a_file_in_the_way(tmp_path):
    folder = RunDir(tmp_path / "lr.0.1")
    folder.create(INFO)
    (tmp_path / "lr.0.1.1").write_text("a file")
    assert folder.rename_old_run() == tmp_path / "lr.0.1.2"
    assert (tmp_path / "lr.0.1.1").read_text() == "a file"


def test_set_aside_of_the_current_directory_renames_it_or_refuses_in_words(tmp_path, monkeypatch):
    folder = written(tmp_path)
    monkeypatch.chdir(folder.path)
    with contextlib.suppress(UserError):
        RunDir(".").rename_old_run()
    kept = [path for path in (folder.path, folder.path.with_name("signs.1")) if path.exists()]
    assert len(kept) == 1
    assert RunDir(kept[0]).read_metadata() == INFO


def test_paths_of_a_run_lie_in_its_folder():
    folder = RunDir("runs/signs")
    assert folder.path == pathlib.Path("runs/signs")
    assert folder.checkpoints == pathlib.Path("runs/signs/checkpoints")


def test_a_folder_that_cannot_be_renamed_is_named(tmp_path, monkeypatch):
    folder = written(tmp_path)

    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with pytest.raises(UserError, match=r"--workdir .*signs cannot be renamed: Permission denied"):
        folder.rename_old_run()


@pytest.mark.parametrize("count", [None, 8])
def test_the_models_batch_norm_takes_its_statistics_over_as_many_images_as_asked(count):
    assert dataclasses.replace(INFO, config=TrainConfig(ghost_batch_size=count)).model().ghost_batch_size == count


def test_random_crops_taken_elsewhere_are_a_difference():
    streamed, held = (
        dataclasses.replace(changed(crop_min_area=0.5), data=INFO.data | {"streamed": value}) for value in (True, False)
    )
    assert difference(held, streamed) == ("random crops of full pictures (--input stream)")
    assert difference(streamed, held) == "random crops of resized images (--input memory)"
    whole = dataclasses.replace(INFO, data=INFO.data | {"streamed": True})
    assert difference(whole, INFO) is None
