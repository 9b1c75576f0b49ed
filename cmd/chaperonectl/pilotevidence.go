package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/manifest"
)

// signedStatement is a statement of a request, verified.
type signedStatement[T any] struct {
	evidence.Item
	statement *T
	file      string
}

// statementsOf returns the statements of a type about a request's artifact that somebody else
// than an author signed, in role if it is not "". The error has those that do not count.
func statementsOf[T any](r *repo, q *governance.Request, predicateType, role string, parse func([]byte) (*T, error)) (out []signedStatement[T], err error) {
	folder, rerr := fs.ReadDir(r.files(), path.Join(q.Dir, "evidence"))
	if errors.Is(rerr, fs.ErrNotExist) {
		return nil, nil
	}
	if rerr != nil {
		return nil, rerr
	}
	target := evidence.Target{Artifact: q.Manifest.Spec.Artifact.Digest, Manifest: q.ManifestDigest, Authors: q.Authors}
	for _, entry := range folder {
		if !strings.HasSuffix(entry.Name(), signedEnding) || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		file := path.Join(q.Dir, "evidence", entry.Name())
		e, rerr := governance.ReadEnvelope(r.files(), file)
		if rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		item, rerr := evidence.Read(r.Root, e)
		if rerr == nil && item.PredicateType != predicateType {
			continue
		}
		if rerr == nil {
			rerr = item.Check(target, evidence.Requirement{PredicateType: predicateType, Role: role}, time.Now())
		}
		if rerr == nil && !item.Independent(q.Authors) {
			rerr = fmt.Errorf("evidence %s is signed by an author alone", item.Digest)
		}
		var statement *T
		if rerr == nil {
			statement, rerr = parse(item.Predicate)
		}
		if rerr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", file, rerr))
			continue
		}
		out = append(out, signedStatement[T]{item, statement, file})
	}
	return out, err
}

// newest returns the newest statement of a type, nil for none. Evidence that does not count
// is an error only if there is no other.
func newest[T any](r *repo, q *governance.Request, predicateType, role string, parse func([]byte) (*T, error)) (*signedStatement[T], error) {
	all, err := statementsOf(r, q, predicateType, role, parse)
	if len(all) == 0 {
		return nil, err
	}
	last := &all[0]
	for i := range all {
		if all[i].IssuedAt.After(last.IssuedAt) {
			last = &all[i]
		}
	}
	return last, nil
}

// compareVersions orders versions of a plugin. One that is no semantic version is the lowest.
func compareVersions(a, b string) int {
	order, err := manifest.CompareVersions(a, b)
	if err != nil {
		_, err = manifest.CompareVersions(a, a)
		return map[bool]int{true: -1, false: 1}[err != nil]
	}
	return order
}
