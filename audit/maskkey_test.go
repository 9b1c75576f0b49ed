package audit

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestLoadMaskKeyOfFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mask.key")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadMaskKey(path); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("LoadMaskKey of a FIFO = %v, want an error that it is not a regular file", err)
	}
}
