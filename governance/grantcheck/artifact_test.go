package grantcheck_test

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

func TestTreeDigest(t *testing.T) {
	tree := func(change func(fstest.MapFS)) fstest.MapFS {
		m := fstest.MapFS{"bin/plugin": {Data: []byte("#!"), Mode: 0o755}, "data": {Data: []byte("x"), Mode: 0o644}}
		if change != nil {
			change(m)
		}
		return m
	}
	want, err := grantcheck.TreeDigest(tree(nil))
	if err != nil || !grantcheck.IsDigest(want) {
		t.Fatalf("digest is %q, %v", want, err)
	}
	for name, change := range map[string]func(fstest.MapFS){
		"content":  func(m fstest.MapFS) { m["data"].Data = []byte("y") },
		"mode":     func(m fstest.MapFS) { m["data"].Mode = 0o755 },
		"set-uid":  func(m fstest.MapFS) { m["bin/plugin"].Mode |= fs.ModeSetuid },
		"file":     func(m fstest.MapFS) { m["more"] = &fstest.MapFile{Mode: 0o644} },
		"name":     func(m fstest.MapFS) { m["date"] = m["data"]; delete(m, "data") },
		"newlines": func(m fstest.MapFS) { m["data\" 0644 sha256:0\n\"more"] = m["data"]; delete(m, "data") },
	} {
		got, err := grantcheck.TreeDigest(tree(change))
		if err != nil || got == want {
			t.Errorf("%s changed: digest is %s, %v", name, got, err)
		}
	}
	for name, test := range map[string]struct {
		tree fstest.MapFS
		want string
	}{
		"link":   {tree(func(m fstest.MapFS) { m["link"] = &fstest.MapFile{Data: []byte("data"), Mode: fs.ModeSymlink} }), "neither a regular file nor a folder"},
		"device": {tree(func(m fstest.MapFS) { m["null"] = &fstest.MapFile{Mode: fs.ModeDevice} }), "neither a regular file nor a folder"},
		"empty":  {fstest.MapFS{}, "has no file"},
	} {
		if _, err := grantcheck.TreeDigest(test.tree); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		}
	}
}
