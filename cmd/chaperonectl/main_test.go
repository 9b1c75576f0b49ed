package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestMain runs the real commands inside the test's own binary. The variable TEST_NOW moves
// their clock, which the program itself cannot do.
func TestMain(m *testing.M) {
	testenv.EndWithoutDelay()
	testscript.Main(m, map[string]func(){
		"chaperonectl": func() {
			os.Exit(execute(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, testClock))
		},
	})
}

func testClock() time.Time {
	if t, err := time.Parse(time.RFC3339, os.Getenv("TEST_NOW")); err == nil {
		return t
	}
	return time.Now()
}

// TestScript runs the command scripts.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "testdata/script",
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"keys": makeKeys, "digest": setDigest, "grant": setGrant, "replace": replaceText, "record": recordAccesses, "sidecar": buildSidecar},
		Setup: func(env *testscript.Env) error {
			env.Setenv("GORACE", os.Getenv("GORACE"))
			return nil
		},
	})
}

// makeKeys makes NAME.key for each name, and a variable of that name with the public half.
func makeKeys(ts *testscript.TestScript, _ bool, names []string) {
	for _, name := range names {
		k, err := dsse.GenerateKey()
		ts.Check(err)
		text, err := k.PEM()
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(name+".key"), text, 0o600))
		ts.Setenv(name, halfOf(k.Public(), "").Ed25519)
	}
}

// setGrant sets GRANT to the digest of the grant that is composed in the folder of a request.
func setGrant(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv("GRANT", dsse.Digest([]byte(strings.TrimSuffix(ts.ReadFile(args[0]+"/grant.json"), "\n"))))
}

// setDigest replaces DIGEST in files by the digest of the first one: digest ARTIFACT FILE...
func setDigest(ts *testscript.TestScript, _ bool, args []string) {
	digest := dsse.Digest([]byte(ts.ReadFile(args[0])))
	for _, file := range args[1:] {
		ts.Check(os.WriteFile(ts.MkAbs(file), []byte(strings.ReplaceAll(ts.ReadFile(file), "DIGEST", digest)), 0o600))
	}
}

// replaceText replaces a text in a file: replace FILE OLD NEW. An old text that is not there
// fails the test.
func replaceText(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile(args[0])
	if !strings.Contains(text, args[1]) {
		ts.Fatalf("%s does not have %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.ReplaceAll(text, args[1], args[2])), 0o600))
}
