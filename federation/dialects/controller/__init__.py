"""The REST API that FEDn's and Scaleout's clients share: the same nouns and words below /api/v1/."""
