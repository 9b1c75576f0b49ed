package governance

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// authority returns the content of a caFile, which is beside the manifest; nil for "".
func (r *Repository) authority(q *Request, name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	if err := grantcheck.CheckAuthorityFile(name); err != nil {
		return nil, fmt.Errorf("caFile %w", err)
	}
	data, err := readFile(r.fsys, path.Join(q.Dir, name))
	if err != nil {
		return nil, fmt.Errorf("caFile %q, which has to be beside the manifest: %w", name, err)
	}
	return data, nil
}

// authorities returns the digests of the files of authorities that a grant names.
func (r *Repository) authorities(q *Request, g *authz.Grant) ([]grantcheck.Authority, error) {
	var names []string
	for i := range g.Rules {
		names = append(names, g.Rules[i].To.TLS.CAFile)
	}
	for i := range g.Credentials {
		if o := g.Credentials[i].Inject.OAuth2; o != nil {
			names = append(names, o.CAFile)
		}
	}
	slices.Sort(names)
	var out []grantcheck.Authority
	for _, name := range slices.Compact(names) {
		data, err := r.authority(q, name)
		if err != nil {
			return nil, err
		}
		if name != "" {
			out = append(out, grantcheck.Authority{File: name, Digest: dsse.Digest(data)})
		}
	}
	return out, nil
}

// AuthorityFile is a file of authorities to write beside a grant.
type AuthorityFile struct {
	// Name is its path in the repository.
	Name string
	// Data is its content, which was reviewed.
	Data []byte
}

// AuthorityFiles returns the files of authorities that the grant which was reviewed needs
// beside it, and that are not there yet. They are written before the grant. A file of
// another content is replaced only if it is the one of this plugin's grant in force.
func (r *Repository) AuthorityFiles(e *Evaluation) ([]AuthorityFile, error) {
	object, err := configs.ParseObject[configs.GrantSpec](FileDraft, e.Request.Draft)
	if err != nil {
		return nil, err
	}
	var out []AuthorityFile
	if object.Spec.Binding == nil {
		return nil, nil
	}
	for _, a := range object.Spec.Binding.Authorities {
		data, err := r.authority(e.Request, a.File)
		if err != nil {
			return nil, err
		}
		if got := dsse.Digest(data); got != a.Digest {
			return nil, errors.New(Moved{"caFile " + a.File, a.Digest, got}.Text())
		}
		file := AuthorityFile{path.Join(path.Dir(GrantFile(e.Request.Plugin)), a.File), data}
		switch there, err := readFile(r.fsys, file.Name); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case dsse.Digest(there) == a.Digest:
			continue
		default:
			if err := r.mayReplace(e, file.Name, grantcheck.Authority{File: a.File, Digest: dsse.Digest(there)}); err != nil {
				return nil, err
			}
		}
		out = append(out, file)
	}
	return out, nil
}

// mayReplace refuses to replace a file beside the grants, unless the grant in force of the
// plugin needs it, and no other plugin's.
func (r *Repository) mayReplace(e *Evaluation, name string, there grantcheck.Authority) error {
	entries, err := fs.ReadDir(r.fsys, path.Dir(GrantFile(e.Request.Plugin)))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		plugin, signed := strings.CutSuffix(entry.Name(), signedEnding)
		if !signed || plugin == e.Request.Plugin || !authz.IsName(plugin) {
			continue
		}
		if issued, err := r.Issued(plugin); err != nil || issued != nil && slices.Contains(issued.Object.Spec.Binding.Authorities, there) {
			return fmt.Errorf("%s has another content, digest %s, which the grant of %s may need; name the file of %s otherwise in its manifest, as in %[4]s-ca.pem", name, there.Digest, plugin, e.Request.Plugin)
		}
	}
	if e.Issued == nil || !slices.Contains(e.Issued.Object.Spec.Binding.Authorities, there) {
		return fmt.Errorf("%s has another content, digest %s, which no grant here needs; remove it", name, there.Digest)
	}
	return nil
}
