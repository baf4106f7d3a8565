"""The keys of topology.yaml's section `sandboxes`; see `fields`.

Job: say of each key its name, shape, bounds, default, meaning and why the default is what it is.
Does not know: YAML, files, providers.
Invariants: those of `fields`.
"""

from .shapes import Bytes, Choice, Field, Flag, Integer, Options, Seconds, Section

_MONTH_S = 30 * 86_400.0

SANDBOXES = Section(
    "sandboxes",
    "Where task kinds run what a model wrote; one process on each host that has workers.",
    (
        Field(
            "provider",
            Choice(("auto", "apptainer", "bubblewrap", "process")),
            "What makes them. `auto`: Apptainer if it is installed and an image is named, else "
            "bubblewrap if that is installed, else none.",
            "auto",
            "The strongest that is there; `process` isolates nothing and is never chosen.",
        ),
        Field(
            "unsafe",
            Flag(),
            "Allow the provider `process`, which isolates nothing.",
            default=False,
            why="What a model writes is hostile until shown otherwise.",
        ),
        Field(
            "pool",
            Integer(0, 1024),
            "Sandboxes of each image kept started on each host, so that a task gets one at once.",
            0,
            "They cost memory; a cold start takes 50 ms with bubblewrap and 350 ms with Apptainer.",
        ),
        Field(
            "images",
            Options(),
            "Images by name: paths of directories or SIF files, relative to this file. `base` is "
            "what a task gets that names none.",
            {},
            "bubblewrap needs none: without one it shows the host's /usr.",
        ),
        Field(
            "memory_bytes",
            Bytes(2**24),
            "The most that a task may ask for: memory of each process.",
            "4GiB",
            "Compilers and test suites fit.",
        ),
        Field(
            "total_bytes",
            Bytes(2**24),
            "The most that a task may ask for: memory of all processes together, with what they "
            "wrote into memory.",
            "8GiB",
            "Two of the largest processes; the keeper looks several times a second.",
        ),
        Field(
            "disk_bytes",
            Bytes(2**20),
            "The most that a task may ask for: files in /work, as many in /tmp, as many shared.",
            "4GiB",
            "A large repository with its build fits; with bubblewrap it is memory.",
        ),
        Field(
            "processes",
            Integer(4, 1_000_000),
            "The most that a task may ask for: processes and threads at once.",
            1024,
            "A parallel build fits, and a fork bomb does not hurt.",
        ),
        Field(
            "cpu_s",
            Seconds(1.0, _MONTH_S),
            "The most that a task may ask for: processor time of each process.",
            3600,
            "An hour of one core.",
        ),
        Field(
            "wall_s",
            Seconds(1.0, _MONTH_S),
            "The most that a task may ask for: life of a sandbox, after which it is stopped.",
            14_400,
            "Longer than any stage may take by default, with its retries.",
        ),
    ),
)
