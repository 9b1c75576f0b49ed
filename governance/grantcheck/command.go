package grantcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Bounds of a command, which reviewers read in full.
const (
	maxCommandWords = 256
	maxCommandBytes = 8 << 10
)

// Equal reports whether both are the same program with the same command.
func (a Artifact) Equal(b Artifact) bool {
	return a.Kind == b.Kind && a.Digest == b.Digest && slices.Equal(a.Command, b.Command)
}

// Text returns the kind, the digest and, if there is one, the whole command, with each of its
// words quoted.
func (a Artifact) Text() string {
	text := string(a.Kind) + " " + a.Digest
	if len(a.Command) > 0 {
		text += ", command " + a.commandText()
	}
	return text
}

func (a Artifact) commandText() string {
	return fmt.Sprintf("%+q", a.Command)
}

// CheckCommand reports what is wrong with the command by itself; nil without one.
func (a Artifact) CheckCommand() error {
	if a.Command == nil {
		return nil
	}
	all := strings.Join(a.Command, "")
	switch {
	case len(a.Command) == 0:
		return errors.New("is empty; write the program and its arguments, as in [weather, --serve], or remove it")
	case a.Kind == ArtifactImage:
		return errors.New("goes with kind file or tree; the container runtime starts an image, and chaperone serve does not see its arguments")
	case len(a.Command) > maxCommandWords || len(all) > maxCommandBytes:
		return fmt.Errorf("has %d words of %d bytes; at most %d of %d bytes are possible", len(a.Command), len(all), maxCommandWords, maxCommandBytes)
	case strings.Contains(all, "\x00"):
		return errors.New("has a NUL byte, which no argument has")
	case !fs.ValidPath(a.Command[0]) || a.Command[0] == ".":
		return fmt.Errorf("begins with %s; write the name of the file, as in weather, or of a tree its path below the folder, as in bin/weather", quote(a.Command[0]))
	}
	return nil
}

// CommandError reports arguments that are not those of the grant's command. Its text has the
// first one that differs, which may be a secret: it is for a terminal, and not for a log.
type CommandError struct{ text string }

// Error returns the argument, what was approved, and the fix.
func (e *CommandError) Error() string { return e.text }

// CheckArgs returns a [CommandError] for the first of args, a program and its arguments, that
// is not as in the command; nil without a command. The content of the program is for the
// caller to compare. Its name is compared here, since a program may act by the name it is
// started with. folder is the absolute path of a tree without links, program that of the
// file that is started, and tree the folder's content; all are zero for a file. A word that
// is a path in the tree has to be the absolute path, which is the same file in every working
// directory.
func (a Artifact) CheckArgs(args []string, folder, program string, tree fs.FS) error {
	if len(a.Command) == 0 {
		return nil
	}
	first := a.Command[0]
	if tree != nil && program != path.Join(folder, first) {
		return &CommandError{fmt.Sprintf("the program is %s, and the grant's command begins with %s; start %s", quote(program), quote(first), quote(path.Join(folder, first)))}
	}
	if path.Base(args[0]) != path.Base(first) {
		return &CommandError{fmt.Sprintf("CMD is %s, and the grant's command begins with %s; start the file by this name", quote(args[0]), quote(first))}
	}
	for i := 1; i < max(len(args), len(a.Command)); i++ {
		is, want := "absent", "no more"
		if i < len(args) {
			is = quote(args[i])
		}
		if i < len(a.Command) {
			word := a.Command[i]
			if tree != nil && inTree(tree, word) {
				word = path.Join(folder, word)
			}
			if i < len(args) && args[i] == word {
				continue
			}
			want = quote(word)
		}
		return &CommandError{fmt.Sprintf("argument %d is %s, and the grant's command has %s; start the command that was approved, or have this one approved", i, is, want)}
	}
	return nil
}

// inTree reports whether a word is the path of something in the tree, as ./main.py is.
func inTree(tree fs.FS, word string) bool {
	name := path.Clean(word)
	if word == "" || !fs.ValidPath(name) {
		return false
	}
	_, err := fs.Stat(tree, name)
	return err == nil
}
