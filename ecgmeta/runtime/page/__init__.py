"""Charts, and pages that hold everything they show: HTML with its style and pictures inside, no script, nothing fetched."""
