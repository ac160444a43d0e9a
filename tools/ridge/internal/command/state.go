package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// readState fills v from a resume file; a file that does not exist leaves v.
func readState(path string, v any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--resume: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("--resume %s is no progress file: %w", path, err)
	}
	return nil
}

// writeState replaces a resume file whole.
func writeState(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("--resume: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("--resume: %w", err)
	}
	return nil
}
