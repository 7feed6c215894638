"""Records: everything that is written to disk or handed from one floor to another, as typed, frozen models.

A file is read through its model on every path, also by `dnd verify` and `dnd status`: what does not fit is one line
that names the file. Names of files inside records match the pattern of what they name, so that a record from somebody
else can point at nothing outside its own shard set.
"""

from data_specs.records.base import *  # noqa: F403
from data_specs.records.reasons import *  # noqa: F403
from data_specs.records.results import *  # noqa: F403
from data_specs.records.runs import *  # noqa: F403
from data_specs.records.samples import *  # noqa: F403
from data_specs.records.sets import *  # noqa: F403
from data_specs.records.summary import *  # noqa: F403
from data_specs.records.work import *  # noqa: F403
