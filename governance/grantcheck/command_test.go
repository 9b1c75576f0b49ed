package grantcheck_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

// TestCheckCommand refuses commands that no program is started with, or that mean another
// one on another machine.
func TestCheckCommand(t *testing.T) {
	tests := map[string]struct {
		kind    grantcheck.ArtifactKind
		command []string
		want    string // of the error; "" for none
	}{
		"none":            {grantcheck.ArtifactImage, nil, ""},
		"program":         {grantcheck.ArtifactFile, []string{"weather"}, ""},
		"arguments":       {grantcheck.ArtifactTree, []string{"bin/weather", "", "--a b"}, ""},
		"empty":           {grantcheck.ArtifactFile, []string{}, "is empty"},
		"image":           {grantcheck.ArtifactImage, []string{"weather"}, "goes with kind file or tree"},
		"no name":         {grantcheck.ArtifactFile, []string{""}, `begins with ""`},
		"the folder":      {grantcheck.ArtifactTree, []string{"."}, `begins with "."`},
		"absolute":        {grantcheck.ArtifactTree, []string{"/bin/sh"}, `begins with "/bin/sh"`},
		"above":           {grantcheck.ArtifactTree, []string{"../sh"}, `begins with "../sh"`},
		"NUL":             {grantcheck.ArtifactFile, []string{"weather", "a\x00b"}, "NUL"},
		"many words":      {grantcheck.ArtifactFile, append([]string{"weather"}, make([]string, 256)...), "has 257 words"},
		"many bytes":      {grantcheck.ArtifactFile, []string{"weather", strings.Repeat("x", 8<<10)}, "of 8199 bytes"},
		"of unknown kind": {"url", []string{"weather"}, ""}, // the kind is reported by itself
	}
	for name, test := range tests {
		err := grantcheck.Artifact{Kind: test.kind, Command: test.command}.CheckCommand()
		if err == nil != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// TestCheckArgs compares what is started with what was approved.
func TestCheckArgs(t *testing.T) {
	tree := fstest.MapFS{"bin/python3": {}, "app/main.py": {}}
	file := []string{"weather", "--serve", "main.py"}
	app := []string{"bin/python3", "./app/main.py", "run", "--x=app/main.py"}
	const program = "/opt/w/bin/python3"
	good := []string{"python3", "/opt/w/app/main.py", "run", "--x=app/main.py"}
	with := func(i int, word string) []string {
		out := append([]string{}, good...)
		out[i] = word
		return out
	}
	tests := map[string]struct {
		command []string
		program string // of a tree; "" for a file
		args    []string
		want    string // of the error; "" for none
	}{
		"no command":            {nil, "", []string{"/bin/sh", "-c", "true"}, ""},
		"the same":              {file, "", file, ""},
		"in any folder":         {file, "", []string{"/opt/weather", "--serve", "main.py"}, ""},
		"another name":          {file, "", []string{"/opt/rm", "--serve", "main.py"}, `CMD is "/opt/rm", and the grant's command begins with "weather"`},
		"another argument":      {file, "", []string{"weather", "\x1b[2J", "main.py"}, `argument 1 is "\x1b[2J", and the grant's command has "--serve"; start the command`},
		"one less":              {file, "", file[:2], `argument 2 is absent, and the grant's command has "main.py"`},
		"one more":              {file, "", append(file[:3:3], "-v"), `argument 3 is "-v", and the grant's command has no more`},
		"joined":                {file, "", []string{"weather", "--serve main.py"}, "argument 1"},
		"in the tree":           {app, program, good, ""},
		"another program":       {app, "/opt/w/bin/sh", good, `start "/opt/w/bin/python3"`},
		"another name of it":    {app, program, with(0, "busybox"), `CMD is "busybox"`},
		"of the working folder": {app, program, with(1, "./app/main.py"), `argument 1 is "./app/main.py", and the grant's command has "/opt/w/app/main.py"`},
		"of another folder":     {app, program, with(1, "/tmp/app/main.py"), "argument 1"},
		"no file":               {app, program, with(2, "/opt/w/run"), `has "run"`},
		"within an option":      {app, program, with(3, "--x=/opt/w/app/main.py"), `has "--x=app/main.py"`},
	}
	for name, test := range tests {
		a := grantcheck.Artifact{Kind: grantcheck.ArtifactFile, Command: test.command}
		err := a.CheckArgs(test.args, "", "", nil)
		if test.program != "" {
			err = a.CheckArgs(test.args, "/opt/w", test.program, tree)
		}
		if err == nil != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
