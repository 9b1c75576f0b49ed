package risk

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// Result is a score with all that it is from.
type Result struct {
	Plugin  string    `json:"plugin"`
	Version string    `json:"version"`
	Score   int       `json:"score"`
	Band    string    `json:"band"`
	AsOf    time.Time `json:"asOf"`
	Stops   []Stop    `json:"stops,omitempty"`
	Parts   []Part    `json:"parts"`
	Addends []Addend  `json:"addends"`
	// Inputs are the digests of everything that was read, sorted by name.
	Inputs []Input `json:"inputs"`
}

// Part is one of the five parts of a score.
type Part struct {
	Name   string `json:"name"`
	Points int    `json:"points"` // the smaller of Sum and Cap
	Sum    int    `json:"sum"`
	Cap    int    `json:"cap"`
}

// Addend is one reason for points.
type Addend struct {
	Part string `json:"part"`
	Code string `json:"code"`
	// Ref is the id of a permission, a finding, a control or an exemption.
	Ref string `json:"ref,omitempty"`
	// Points are those of the rubric, and Counted those after weight and VEX.
	Points  int    `json:"points"`
	Counted int    `json:"counted"`
	Text    string `json:"text"`
	// Evidence is the digest of the document that shows it; "" for something that is missing.
	Evidence string `json:"evidence,omitempty"`
}

// Input is a document that a score was computed from.
type Input struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
}

// JSON returns the canonical form: fields in the order of their declaration, no spaces, one
// line end.
func (r *Result) JSON() ([]byte, error) {
	out, err := evidence.Canonical(r)
	if err != nil {
		return nil, err
	}
	return append(out, '\n'), nil
}

// Top returns the addends that count most, at most n.
func (r *Result) Top(n int) []Addend {
	all := slices.DeleteFunc(slices.Clone(r.Addends), func(a Addend) bool { return a.Counted == 0 })
	slices.SortStableFunc(all, func(a, b Addend) int { return cmp.Compare(b.Counted, a.Counted) })
	return all[:min(n, len(all))]
}

// maxStored bounds a stored result in bytes.
const maxStored = 16 << 20

// Parse reads a stored result. It is verified by nobody: see [Verify].
func Parse(stored []byte) (*Result, error) {
	if len(stored) > maxStored {
		return nil, fmt.Errorf("read risk: it has %d bytes; at most %d are allowed", len(stored), maxStored)
	}
	if err := dsse.CheckJSON(stored); err != nil {
		return nil, fmt.Errorf("read risk: %w", err)
	}
	var r Result
	d := json.NewDecoder(bytes.NewReader(stored))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("read risk: %w", err)
	}
	return &r, nil
}

// maxAhead is how far ahead of the clock a stored score may be.
const maxAhead = 5 * time.Minute

// Verify computes a stored score again, at its own time, and returns an error unless every
// byte is the same. The error names the inputs that have moved since.
func Verify(stored []byte, rubric Rubric, req Request, now time.Time) error {
	old, err := Parse(stored)
	if err != nil {
		return err
	}
	if old.AsOf.IsZero() || old.AsOf.After(now.Add(maxAhead)) {
		return fmt.Errorf("verify risk: asOf %s is missing or in the future", old.AsOf.Format(time.RFC3339))
	}
	req.AsOf = old.AsOf
	result, err := Score(rubric, &req)
	if err != nil {
		return err
	}
	again, err := result.JSON()
	switch {
	case err != nil:
		return err
	case bytes.Equal(again, stored):
		return nil
	}
	if moved := compareInputs(old.Inputs, result.Inputs); len(moved) > 0 {
		return fmt.Errorf("verify risk: its inputs have moved: %s; compute it again", printable.Clip(strings.Join(moved, "; "), 1000))
	}
	if old.Score != result.Score || old.Band != result.Band {
		return fmt.Errorf("verify risk: it states %d (%s), but the same inputs give %d (%s): it was edited", old.Score, printable.Clip(old.Band, 32), result.Score, result.Band)
	}
	return errors.New("verify risk: the same inputs give other bytes: it was edited, or made by another version")
}

// compareInputs describes the differences between two lists of inputs.
func compareInputs(old, now []Input) []string {
	var out []string
	for _, i := range old {
		if !slices.Contains(now, i) {
			out = append(out, i.Name+" "+i.Digest+" is gone")
		}
	}
	for _, i := range now {
		if !slices.Contains(old, i) {
			out = append(out, i.Name+" "+i.Digest+" is new")
		}
	}
	return out
}

// Change is a request whose score is another under another rubric.
type Change struct {
	Plugin   string `json:"plugin"`
	Version  string `json:"version"`
	Score    int    `json:"score"`
	Band     string `json:"band"`
	NewScore int    `json:"newScore"`
	NewBand  string `json:"newBand"`
}

// BandChanges reports whether the band is another.
func (c Change) BandChanges() bool { return c.Band != c.NewBand }

// Replay returns the requests whose score differs between two rubrics, those that change
// band first.
func Replay(before, after Rubric, requests []*Request) ([]Change, error) {
	var out []Change
	for _, req := range requests {
		a, err := Score(before, req)
		if err != nil {
			return nil, err
		}
		b, err := Score(after, req)
		if err != nil {
			return nil, err
		}
		if a.Score != b.Score || a.Band != b.Band {
			out = append(out, Change{req.Plugin, req.Version, a.Score, a.Band, b.Score, b.Band})
		}
	}
	slices.SortFunc(out, func(a, b Change) int {
		first := func(c Change) int {
			if c.BandChanges() {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(first(a), first(b)), cmp.Compare(a.Plugin, b.Plugin), cmp.Compare(a.Version, b.Version))
	})
	return out, nil
}
