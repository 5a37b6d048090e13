"""What is to be processed: clips, labels, intervals and splits. No torch, no h5py."""

from manifests.clip import AvarnetError, Clip, Interval, ManifestError
from manifests.growth import Grown, add_clips, refuse_to_lose_splits
from manifests.jsonl import default_root, parse, read, reason, relative_path, write
from manifests.names import listed, names_in, quoted
from manifests.normal import NORMAL_LABELS, normal_label
from manifests.sources.csv import from_csv
from manifests.sources.folders import from_folders
from manifests.sources.groups import Grouped, with_groups
from manifests.sources.ucf_crime import from_ucf_crime
from manifests.sources.video_files import VIDEO_SUFFIXES, ClosedFolder, Found, Listing, videos_below
from manifests.sources.xd_violence import CODES, from_xd_violence
from manifests.split import assign_folds, assign_split, split_table
from manifests.validate import Finding, Probed, check

__all__ = [
    "CODES",
    "NORMAL_LABELS",
    "VIDEO_SUFFIXES",
    "AvarnetError",
    "Clip",
    "ClosedFolder",
    "Finding",
    "Found",
    "Grouped",
    "Grown",
    "Interval",
    "Listing",
    "ManifestError",
    "Probed",
    "add_clips",
    "assign_folds",
    "assign_split",
    "check",
    "default_root",
    "from_csv",
    "from_folders",
    "from_ucf_crime",
    "from_xd_violence",
    "listed",
    "names_in",
    "normal_label",
    "parse",
    "quoted",
    "read",
    "reason",
    "refuse_to_lose_splits",
    "relative_path",
    "split_table",
    "videos_below",
    "with_groups",
    "write",
]
