"""The report page and its text form."""
