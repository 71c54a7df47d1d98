"""French verse by the classical rules: syllables, rhymes, metres. Uses nothing else of the package."""
