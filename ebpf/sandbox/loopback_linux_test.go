package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLowPortsReadOnly opens the low ports where /proc/sys is read-only, as in
// containers.
func TestLowPortsReadOnly(t *testing.T) {
	needKernel(t)
	err := OnThread(func() (bool, error) {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
			return false, err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return false, err
		}
		if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
			return false, err
		}
		if err := unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return false, err
		}
		if err := os.WriteFile("/proc/sys/"+lowPortsSetting, []byte("0"), 0); !errors.Is(err, unix.EROFS) {
			return false, fmt.Errorf("/proc/sys is not read-only: %w", err)
		}
		if err := openLowPorts(); err != nil {
			return false, err
		}
		value, err := os.ReadFile("/proc/sys/" + lowPortsSetting)
		if err == nil && strings.TrimSpace(string(value)) != "0" {
			err = fmt.Errorf("the setting is %q", value)
		}
		return false, err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestLowPortsRequired refuses to serve a port that the plugin cannot bind.
func TestLowPortsRequired(t *testing.T) {
	for ports, want := range map[*[]uint16]bool{{}: false, {1024, 8080}: false, {8080, 1023}: true, {80}: true} {
		if got := hasLowPort(*ports); got != want {
			t.Errorf("%v: %v", *ports, got)
		}
	}
}
