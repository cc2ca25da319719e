"""`flaxresnet report RUN`."""

from dataclasses import dataclass

from flaxresnet.cli.parser import positional
from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.evaluation import load_test_data
from flaxresnet.runtime.compilation_cache import use_compilation_cache


@dataclass(frozen=True)
class Arguments:
    """Writes a page about a run, RUN/report/index.html, with its figures as PNGs beside it; of other --data or
    --checkpoint, in a folder of its own, RUN/report-….

    It shows learning curves, what is taken for what, how sure answers are and how rightly, the most confident mistakes,
    how it does on photos taken otherwise, and the set-up. Of the test images it also learns a temperature, for the
    probabilities that predict gives, and what photos usually look like; both are kept with the run, unless other --data
    or --checkpoint is given.

    Example: flaxresnet report runs/default
    """

    run: str = positional("RUN")
    """Folder of the run (train.py's --workdir)."""

    data: str | None = None
    """HDF5 file or folder with a test split, or pictures by class, all of which count. Left out: the run's own."""

    max_corrupt_fraction: float = 0.0
    """Largest share of unreadable pictures in --data that is left out."""

    checkpoint: CheckpointChoice = "latest"
    """The weights after the last epoch, or those that were best on the test images (a flattering choice)."""


def main(arguments: Arguments) -> int:
    from flaxresnet.report.collect import collect_report_data
    from flaxresnet.report.text import write_report

    use_compilation_cache()
    splits = load_test_data(arguments.run, arguments.data, arguments.max_corrupt_fraction)
    found = collect_report_data(arguments.run, splits, arguments.checkpoint)
    if found.is_own:
        found.assessment.calibration.write(arguments.run)
    print(write_report(arguments.run, found))
    if not found.is_own:
        print(f"the run's own calibration stays as it is: {found.skip_reason}")
    return 0
