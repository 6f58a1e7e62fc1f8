"""Names and standard attributes of every dataset this package writes: the format, in one place.

| name                     | dimensions                          | meaning                                   |
|--------------------------|-------------------------------------|-------------------------------------------|
| `sample`                 | sample                              | index of the validation sample            |
| `t`                      | t                                   | simulation time                           |
| `x`, `y`, `z`            | x, y, z                             | cell centres                              |
| `x_face`, …              | x_face, …                           | faces, for staggered velocities           |
| `component_name`         | component                           | what each component is called             |
| `step`                   | step                                | number of updates done                    |
| `<field>`                | (sample), (t or step), x, y, z,     | predicted state or trajectory             |
|                          | (component)                         |                                           |
| `<field>_target`         | the same                            | target observation y*                     |
| `<control>`              | the same                            | predicted control x                       |
| `<control>_reference`    | the same                            | true control x*, where known              |
| `<name>_untrained`       | the same                            | field or control before the first update  |
| `<name>_re`, `<name>_im` | the same                            | parts of a complex array                  |
| `train_loss`, …          | step                                | metrics; NaN where not recorded           |

Units are those of the PDE and its grid, `1` where there are none; those of metrics are in METRICS.

The simulation clock is called `t`: CF reserves `time` for calendars. Axes carry no `axis` attribute, which
would demand longitude and latitude. A text label cannot be a CF coordinate variable, hence `component_name`
along `component`; reading through `toolkit.runs.datasets` turns it into the index of its dimension.
Every variable on a grid carries the attribute `grid` (JSON text: cells, extent, boundary per side) and, where
it plays a part in an inverse problem, `role` (one of ROLES).

Reference: NetCDF Climate and Forecast Metadata Conventions 1.11; Attribute Convention for Data Discovery 1.3.
"""

from __future__ import annotations

SAMPLE = "sample"
TIME = "t"
STEP = "step"
COMPONENT = "component"
SPACE = ("x", "y", "z")
FACES = ("x_face", "y_face", "z_face")
APPENDABLE = (TIME, STEP)

TARGET = "_target"
REFERENCE = "_reference"
UNTRAINED = "_untrained"
REAL = "_re"
IMAGINARY = "_im"
LABEL = "_name"

GRID = "grid"
ROLE = "role"
ROLES = ("state", "target", "control", "reference", "untrained")

CONVENTIONS = "CF-1.11, ACDD-1.3"
COORDINATE = "coordinate"
RESULT = "modelResult"
QUALITY = "qualityInformation"

METRICS = {
    "train_loss": ("training loss, mean over the batch", "1"),
    "validation_loss": ("validation loss, mean over samples", "1"),
    "control_error": ("half squared error of the control, mean over validation samples", "1"),
    "wall_seconds": ("training time so far, without compilation", "s"),
    "step_seconds": ("duration of one update, without compilation", "s"),
}
"""Long name and units of the metrics that every training records."""

LONG_NAMES = {
    SAMPLE: "validation sample",
    TIME: "simulation time",
    STEP: "number of updates done",
    COMPONENT: "component of the vector",
}


def is_component(dim: str) -> bool:
    """Whether a dimension lists the components of a vector: `component` or `<something>_component`."""
    return dim == COMPONENT or dim.endswith(f"_{COMPONENT}")


def label_name(dim: str) -> str:
    """Name of the variable that holds the text labels along a dimension."""
    return dim + LABEL
