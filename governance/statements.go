package governance

import (
	"errors"
	"path"
	"time"

	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/risk"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// EvidenceFile is one file of a request's evidence.
type EvidenceFile struct {
	File string
	Item evidence.Item
	// Err is why the file is not evidence; nil for a verified statement, which may still not
	// count for the request.
	Err error
}

// EvidenceFiles reads every file in the folder of evidence, also those that are not signed.
func (r *Repository) EvidenceFiles(q *Request) ([]EvidenceFile, error) {
	files, err := list(r.fsys, path.Join(q.Dir, dirEvidence), "")
	if err != nil {
		return nil, err
	}
	out := make([]EvidenceFile, 0, len(files))
	for _, file := range files {
		f := EvidenceFile{File: file.path}
		var e *dsse.Envelope
		if e, f.Err = file.envelope(r.fsys); f.Err == nil {
			f.Item, f.Err = evidence.Read(r.Root, e)
		}
		out = append(out, f)
	}
	return out, nil
}

// Requirements returns the demands on evidence of the guardrails that apply to a plugin.
func (r *Repository) Requirements(plugin string) []evidence.Requirement {
	var out []evidence.Requirement
	for _, need := range termsOf(r.guardrailsOf(plugin)).evidence {
		out = append(out, requirement(need))
	}
	return out
}

// Target returns what the request's evidence has to be about: by the submission, or by the
// manifest before there is one.
func (q *Request) Target() evidence.Target {
	t := evidence.Target{Artifact: q.Manifest.Spec.Artifact.Digest, Manifest: q.ManifestDigest, PURL: q.Manifest.Spec.Artifact.PURL, Authors: q.Authors}
	if q.Submission != nil {
		t.Artifact = q.Submission.Artifact.Digest
	}
	return t
}

// Blocking returns the findings of items that block a grant of the request.
func (r *Repository) Blocking(q *Request, items []evidence.Item, now time.Time) ([]evidence.Block, error) {
	current := evidence.Current(items)
	found, err1 := evidence.Findings(current)
	vex, err2 := evidence.Statements(current)
	plans, err3 := evidence.Plans(current)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	threshold, ok := evidence.ParseSeverity(string(termsOf(r.guardrailsOf(q.Plugin)).block))
	if !ok {
		threshold = evidence.None // an unknown threshold blocks on everything
	}
	exempt := evidence.Exempt(q.Plugin, r.exemptionsOf(q.Plugin), now)
	return evidence.Blocking(found, vex, plans, q.Target(), threshold, exempt, now), nil
}

// exemptionsOf returns the exemptions for a plugin, also those that have expired.
func (r *Repository) exemptionsOf(plugin string) []grantcheck.Exemption {
	var out []grantcheck.Exemption
	for i := range r.Exemptions {
		if r.Exemptions[i].Plugin == plugin {
			out = append(out, r.Exemptions[i].Exemption)
		}
	}
	return out
}

// RiskRubric returns the signed rubric, as scores are computed with.
func (r *Repository) RiskRubric() risk.Rubric {
	return risk.Rubric{RiskRubric: r.Rubric.RiskRubric, Digest: r.Rubric.Digest}
}

// knownSince returns when the youngest author of a request was first seen as an author of its
// plugin: the time of the first evidence about a submission of theirs that somebody else
// signed. Their own times prove nothing. It is zero for an author whom nobody has seen.
func (r *Repository) knownSince(q *Request) time.Time {
	seen := map[string]time.Time{}
	q.firstSeen(seen)
	versions, _ := r.Versions(q.Plugin) // a folder that cannot be read proves nothing
	for _, version := range versions {
		if version == q.Version {
			continue
		}
		if other, err := r.other(q.Plugin, version); err == nil {
			other.firstSeen(seen)
		}
	}
	var youngest time.Time
	for _, author := range q.Authors {
		since, known := seen[author]
		if !known {
			return time.Time{}
		}
		if since.After(youngest) {
			youngest = since
		}
	}
	return youngest
}

// firstSeen adds the time of the first independent evidence to each author of a request.
func (q *Request) firstSeen(out map[string]time.Time) {
	for i := range q.Evidence {
		item := &q.Evidence[i].Item
		if !item.Independent(q.Authors) || item.About(q.Target()) != nil {
			continue
		}
		for _, author := range q.Authors {
			if known, seen := out[author]; !seen || item.IssuedAt.Before(known) {
				out[author] = item.IssuedAt
			}
		}
	}
}
