"""Coverage-guided fuzzing of one reader: `coverage_fuzzer.py NAME FOLDER [FLAGS]`.

`FOLDER/corpus` holds valid files to start from. Any exception other than a `UserError`, a run time of ten seconds, or a
memory use of 2 GiB ends the program with a failure status and leaves the file in `FOLDER`.
"""

import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(folder) for folder in (HERE, HERE.parent, HERE.parent / "weights")]

INSTRUMENTED = ["flaxresnet", "zipfile", "safetensors", "PIL"]


def main(name: str, folder: Path, flags: list[str]) -> None:
    with atheris.instrument_imports(include=INSTRUMENTED):
        from fuzz_targets import READERS

        from flaxresnet.runtime.errors import UserError

        READERS[name](folder / "corpus" / name)  # imports the modules that the reader imports on demand

    input_folder = folder / "input"
    input_folder.mkdir(exist_ok=True)
    path = input_folder / name

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        try:
            READERS[name](path)
        except UserError as error:
            if not str(error).strip():
                raise RuntimeError("an error without a message") from error
        others = {*input_folder.iterdir()} - {path}
        if others:
            raise RuntimeError(f"other files were written: {others}")

    limits = ["-timeout=10", "-rss_limit_mb=2048", f"-artifact_prefix={folder}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(folder / "corpus"), *limits, *flags], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
