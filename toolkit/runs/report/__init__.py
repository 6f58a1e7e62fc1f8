"""Reports: one self-contained HTML page per run or sweep."""
