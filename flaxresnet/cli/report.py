"""`flaxresnet report RUN`."""

from dataclasses import dataclass

from flaxresnet.cli.parser import positional
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.evaluation import load_test_data
from flaxresnet.runtime.compilation_cache import use_compilation_cache
from flaxresnet.runtime.terminal import next_command, status


@dataclass(frozen=True)
class Arguments:
    """Writes an HTML page about a run, RUN/report/index.html, and its figures as PNGs.

    The page shows learning curves, the confusion matrix, calibration, the most confident mistakes, corruption
    robustness and the setup. With other --data or --checkpoint best, the page goes to RUN/report-….

    The command also fits a temperature and an OOD threshold on the test images and stores them with the run, for
    `predict`. It does not store them for an adapted run, other --data or --checkpoint best.

    Example: flaxresnet report runs/default
    """

    run: str = positional("RUN")
    """Run folder (the --workdir of training)."""

    data: str | None = None
    """HDF5 file, folder with HDF5 or ArrayRecord files, or folder with one subfolder of images per class. The report
    covers the test split, or all images of an image folder that has no split folders and was not used in training.
    Default: the dataset that the run was trained on."""

    max_corrupt_fraction: float = 0.0
    """Maximum fraction of corrupt images in --data to skip; the command fails above it."""

    checkpoint: CheckpointChoice = "latest"
    """Weights to use. latest: from the last epoch; best: from the epoch with the highest test accuracy, which makes
    test metrics look better than they are."""


def main(arguments: Arguments) -> int:
    from flaxresnet.report.collect import collect_report_data
    from flaxresnet.report.text import write_report

    use_compilation_cache()
    with status("Loading the test images…"):
        splits = load_test_data(arguments.run, arguments.data, arguments.max_corrupt_fraction)
    with status("Evaluating on test images and their corruptions…"):
        data = collect_report_data(arguments.run, splits, arguments.checkpoint)
    if data.updates_calibration:
        data.calibration_report.calibration.write(arguments.run)
    with status("Writing the report…"):
        page = write_report(arguments.run, data)
    print(f"wrote {page}; open it in a browser")
    if data.updates_calibration:
        print(next_command("flaxresnet", "predict", arguments.run, "PHOTO"))
    else:
        print(f"the run's calibration is unchanged: {data.skip_reason}")
    return 0
