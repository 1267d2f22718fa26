"""Celeb-DF v1: Li et al., CVPR 2020. Layout and test list: `_celeb_df.py`."""

from train.data.datasets._celeb_df import Options, scan_release
from train.data.datasets._sample import Dataset

DATASET = Dataset(
    name="celeb_df_v1",
    description="Celeb-DF v1 (2020)",
    source_label_of_bona_fide="1 in List_of_testing_videos.txt",
    scan=scan_release("celeb_df_v1"),
    options=Options,
    disjoint="video",  # of the 340 listed fakes of v2, 234 are made from training videos
)
