package governance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/manifest"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// The files of a request, in plugins/NAME/VERSION.
const (
	FileManifest    = "manifest.yaml"
	FileCredentials = "credentials.yaml"
	FileSubmission  = "submission" + signedEnding
	FileDraft       = "grant.json"
	dirEvidence     = "evidence"
	dirApprovals    = "approvals"
)

// Request is one version of a plugin that asks for a grant, as its folder has it.
type Request struct {
	Dir             string // plugins/NAME/VERSION
	Plugin, Version string // of the folder

	Manifest       *manifest.File
	ManifestDigest string // of the file

	// Submission is nil before the author has submitted.
	Submission       *grantcheck.Submission
	SubmissionDigest string
	Authors          []string // identities that signed it
	submission       *dsse.Envelope

	Evidence  []Evidence
	Decisions []Decision

	// Draft is the payload of the grant as it was composed for review; nil before.
	Draft []byte

	credentials map[string]authz.CredentialSpec
	// faults are files that are there and cannot be used, by the stage that they block.
	faults []fault
}

// fault is a file that cannot be used.
type fault struct {
	stage string
	err   error
}

// Evidence is one verified statement of a request.
type Evidence struct {
	File string
	evidence.Item
}

// Decision is one signed decision of a request, which may not count.
type Decision struct {
	File     string
	Envelope *dsse.Envelope
}

// RequestDir returns the folder of a request.
func RequestDir(plugin, version string) string { return path.Join(dirPlugins, plugin, version) }

// Request reads the folder of a request. Only a folder that is not one, and a manifest that
// cannot be read, is an error; other faults block stages.
func (r *Repository) Request(dir string) (*Request, error) {
	plugin, version := path.Base(path.Dir(dir)), path.Base(dir)
	if dir != RequestDir(plugin, version) || !isName(plugin) || !fs.ValidPath(dir) {
		return nil, fmt.Errorf("%q is not the folder of a request; name one as in plugins/weather/1.4.0", dir)
	}
	if err := r.checkFolders(dir); err != nil {
		return nil, err
	}
	q := &Request{Dir: dir, Plugin: plugin, Version: version}
	if err := r.readManifest(q); err != nil {
		return nil, err
	}
	q.block(stageEligibility, r.readSubmission(q))
	q.block(stageEligibility, r.readCredentials(q))
	r.readEvidence(q)
	r.readDecisions(q)
	draft, err := readFile(r.fsys, path.Join(dir, FileDraft))
	if !errors.Is(err, fs.ErrNotExist) {
		q.block(stageApprovals, err)
	}
	q.Draft = bytes.TrimSuffix(draft, []byte("\n"))
	return q, nil
}

// other returns the request of another version that one is compared with. Each is read once, so
// that the time for a plugin with many versions does not grow with their square.
func (r *Repository) other(plugin, version string) (*Request, error) {
	dir := RequestDir(plugin, version)
	if q, ok := r.others.Load(dir); ok {
		return q.(*Request), nil //nolint:forcetypeassert // nothing else is stored
	}
	q, err := r.Request(dir)
	if err != nil {
		return nil, err
	}
	r.others.Store(dir, q)
	return q, nil
}

// checkFolders refuses a link in the place of a folder.
func (r *Repository) checkFolders(dir string) error {
	for d := dir; d != "."; d = path.Dir(d) {
		info, err := fs.Lstat(r.fsys, d)
		if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		if !info.IsDir() {
			return fmt.Errorf("read request: %s is not a folder (%s)", d, info.Mode().Type())
		}
	}
	return nil
}

func (q *Request) block(stage string, err error) {
	if err != nil {
		q.faults = append(q.faults, fault{stage, err})
	}
}

func (r *Repository) readManifest(q *Request) error {
	file := path.Join(q.Dir, FileManifest)
	data, err := readFile(r.fsys, file)
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	if q.Manifest, err = manifest.Read(file, data); err != nil {
		return err
	}
	q.ManifestDigest = q.Manifest.Digest
	return nil
}

// readSubmission reads the author's submission, and compares it with the manifest.
func (r *Repository) readSubmission(q *Request) error {
	file := path.Join(q.Dir, FileSubmission)
	e, err := envelope(r.fsys, file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the stage reports it as missing
	}
	if err != nil {
		return err
	}
	doc, err := r.Root.Verify(e, dsse.KindSubmission)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	var s grantcheck.Submission
	if err := dsse.Decode(doc.Payload, &s); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	q.Submission, q.SubmissionDigest, q.submission = &s, doc.Digest, e
	for _, signer := range doc.Signed {
		q.Authors = append(q.Authors, signer.Identity)
	}
	slices.Sort(q.Authors)
	q.Authors = slices.Compact(q.Authors)
	m := &q.Manifest.Spec
	for _, d := range []struct{ what, got, want string }{
		{"plugin", s.Plugin, q.Plugin},
		{"version", s.Version, q.Version},
		{"manifest", s.Manifest, q.ManifestDigest},
		{"artifact kind", string(s.Artifact.Kind), string(m.Artifact.Kind)},
		{"artifact digest", s.Artifact.Digest, m.Artifact.Digest},
		{"artifact", s.Artifact.Text(), m.Artifact.Text()},
	} {
		if d.got != d.want {
			return fmt.Errorf("%s: its %s is %q, and that of %s is %q; the author has to submit again", file, d.what, d.got, FileManifest, d.want)
		}
	}
	return nil
}

// readCredentials reads the sources of the credentials that the manifest names. A manifest
// names them only: where they come from is for those who run the plugin. The file has the
// field credentials of a grant, and nothing else.
func (r *Repository) readCredentials(q *Request) error {
	file := path.Join(q.Dir, FileCredentials)
	data, err := readFile(r.fsys, file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	q.credentials, err = ParseCredentials(file, data)
	return err
}

func (r *Repository) readEvidence(q *Request) {
	files, err := list(r.fsys, path.Join(q.Dir, dirEvidence), signedEnding)
	q.block(stageSecurity, err)
	var budget folderBudget
	for _, file := range files {
		e, err := file.envelope(r.fsys)
		if err != nil {
			q.block(stageSecurity, err)
			continue
		}
		if err := budget.take(file, e); err != nil {
			q.block(stageSecurity, err)
			return
		}
		item, err := evidence.Read(r.Root, e)
		if err != nil {
			q.block(stageSecurity, fmt.Errorf("%s: %w", file.path, err))
			continue
		}
		q.Evidence = append(q.Evidence, Evidence{file.path, item})
	}
	slices.SortFunc(q.Evidence, func(a, b Evidence) int { return strings.Compare(a.Digest, b.Digest) })
	q.Evidence = slices.CompactFunc(q.Evidence, func(a, b Evidence) bool { return a.Digest == b.Digest })
}

func (r *Repository) readDecisions(q *Request) {
	files, err := list(r.fsys, path.Join(q.Dir, dirApprovals), signedEnding)
	q.block(stageApprovals, err)
	var budget folderBudget
	for _, file := range files {
		e, err := file.envelope(r.fsys)
		if err != nil {
			q.block(stageApprovals, err)
			continue
		}
		if err := budget.take(file, e); err != nil {
			q.block(stageApprovals, err)
			return
		}
		q.Decisions = append(q.Decisions, Decision{file.path, e})
	}
}

// Proposed returns the grant that the manifest asks for, with the ids of its permissions as
// those of its rules. It has no end.
func (q *Request) Proposed() (authz.Grant, error) { return grantOf(q) }

// reviewedUntil returns the latest time of what approvers review.
func (q *Request) reviewedUntil() time.Time {
	var at time.Time
	if q.Submission != nil {
		at = q.Submission.IssuedAt
	}
	for i := range q.Evidence {
		if t := q.Evidence[i].IssuedAt; t.After(at) {
			at = t
		}
	}
	return at
}

// NewSubmission returns the payload that an author signs.
func (r *Repository) NewSubmission(q *Request, now time.Time) ([]byte, error) {
	if name, version := q.Manifest.Plugin, q.Manifest.Spec.Version; name != q.Plugin || version != q.Version {
		return nil, fmt.Errorf("submit %s: the manifest is of %s %s; its folder has to be %s", q.Dir, name, version, RequestDir(name, version))
	}
	for i := range q.Manifest.Spec.Permissions {
		if _, err := r.authority(q, q.Manifest.Spec.Permissions[i].To.TLS.CAFile); err != nil {
			return nil, fmt.Errorf("submit %s: %w", q.Dir, err)
		}
	}
	return json.Marshal(grantcheck.Submission{
		Plugin: q.Plugin, Version: q.Version, Manifest: q.ManifestDigest, Artifact: q.Manifest.Spec.Artifact.Artifact, IssuedAt: now.UTC(),
	})
}
