"""The house rules, held by tests: layers, sizes, words, pages, workflows."""
