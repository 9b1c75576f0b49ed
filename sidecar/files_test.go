package sidecar

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestWritable: a file that the plugin's user may write is not one that was verified, by
// whichever of the kernel's ways it may.
func TestWritable(t *testing.T) {
	const uid, gid = 61999, 61999
	own := os.Getegid()
	list := func(path string, mask uint16) { // lets user uid write, as far as the mask does
		data := binary.LittleEndian.AppendUint32(nil, 2)
		for _, entry := range []struct {
			tag, perm uint16
			id        uint32
		}{{0x01, 6, ^uint32(0)}, {0x02, 6, uid}, {0x04, 4, ^uint32(0)}, {0x10, mask, ^uint32(0)}, {0x20, 4, ^uint32(0)}} {
			data = binary.LittleEndian.AppendUint16(data, entry.tag)
			data = binary.LittleEndian.AppendUint16(data, entry.perm)
			data = binary.LittleEndian.AppendUint32(data, entry.id)
		}
		testenv.Must(t, unix.Setxattr(path, "system.posix_acl_access", data, 0))
	}
	for name, test := range map[string]struct {
		mode   os.FileMode
		folder bool
		groups []int
		change func(path string)
		want   bool
	}{
		"nobody else's":          {mode: 0o755},
		"everybody's":            {mode: 0o666, want: true},
		"everybody's and sticky": {mode: 0o666 | os.ModeSticky, want: true},
		"a sticky folder":        {mode: 0o777 | os.ModeSticky, folder: true},
		"a folder":               {mode: 0o777, folder: true, want: true},
		"of another group":       {mode: 0o664},
		"of a group of the user": {mode: 0o664, groups: []int{own}, want: true},
		"not of its group":       {mode: 0o646, groups: []int{own}},
		"by an access list":      {mode: 0o644, change: func(path string) { list(path, 6) }, want: true},
		"masked in a list":       {mode: 0o644, change: func(path string) { list(path, 4) }},
	} {
		path := filepath.Join(t.TempDir(), "artifact")
		if test.folder {
			testenv.Must(t, os.Mkdir(path, 0o700))
		} else {
			testenv.Must(t, os.WriteFile(path, nil, 0o600))
		}
		testenv.Must(t, os.Chmod(path, test.mode))
		if test.change != nil {
			test.change(path)
		}
		if got := writable(path, uid, append(test.groups, gid)...); got != test.want {
			t.Errorf("%s: writable is %t, want %t", name, got, test.want)
		}
	}
}
