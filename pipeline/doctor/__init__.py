"""Doctor: what this machine has, what it lacks for a target, and the remedy for each."""

from pipeline.doctor.examine import examine
from pipeline.doctor.finding import Finding
from pipeline.doctor.sources import Sources

__all__ = ["Finding", "Sources", "examine"]
