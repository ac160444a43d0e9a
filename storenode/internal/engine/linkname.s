// Empty on purpose: see badgerwrite.go.
