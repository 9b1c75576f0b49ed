package grantcheck

import (
	"encoding/json"
	"fmt"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// maxEnvelopes bounds the approvals and the exemptions of a bundle.
const maxEnvelopes = 256

// Bundle is the file of a signed grant. It is the grant's envelope with members that
// other readers of DSSE ignore, so that one rename puts all of it in place.
type Bundle struct {
	Grant      *dsse.Envelope   // of kind grant; its payload is a PluginGrant with spec.binding
	Submission *dsse.Envelope   // of kind submission, by the author
	Approvals  []*dsse.Envelope // of kind approval
	Exemptions []*dsse.Envelope // of kind exemption, that the binding refers to
}

// bundleJSON are the members of a bundle beside those of the envelope.
type bundleJSON struct {
	Submission json.RawMessage   `json:"submission,omitempty"`
	Approvals  []json.RawMessage `json:"approvals,omitempty"`
	Exemptions []json.RawMessage `json:"exemptions,omitempty"`
}

// ParseBundle reads a bundle, and verifies no signature: see [Check].
func ParseBundle(data []byte) (*Bundle, error) {
	grant, err := dsse.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("read grant: %w", err)
	}
	var in bundleJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return nil, fmt.Errorf("read grant: it is not the expected JSON: %w", err)
	}
	if len(in.Approvals) > maxEnvelopes || len(in.Exemptions) > maxEnvelopes {
		return nil, fmt.Errorf("read grant: it has %d approvals and %d exemptions; at most %d of each are allowed", len(in.Approvals), len(in.Exemptions), maxEnvelopes)
	}
	out := &Bundle{Grant: grant}
	if len(in.Submission) > 0 {
		if out.Submission, err = dsse.Parse(in.Submission); err != nil {
			return nil, fmt.Errorf("read grant: submission: %w", err)
		}
	}
	if out.Approvals, err = envelopes("approvals", in.Approvals); err != nil {
		return nil, err
	}
	if out.Exemptions, err = envelopes("exemptions", in.Exemptions); err != nil {
		return nil, err
	}
	return out, nil
}

func envelopes(field string, all []json.RawMessage) ([]*dsse.Envelope, error) {
	var out []*dsse.Envelope
	for i, data := range all {
		e, err := dsse.Parse(data)
		if err != nil {
			return nil, fmt.Errorf("read grant: %s[%d]: %w", field, i, err)
		}
		out = append(out, e)
	}
	return out, nil
}

// Marshal returns the file's content, ending in a newline.
func (b *Bundle) Marshal() ([]byte, error) {
	members := bundleJSON{}
	if b.Submission != nil {
		members.Submission = b.Submission.Marshal()
	}
	for _, e := range b.Approvals {
		members.Approvals = append(members.Approvals, e.Marshal())
	}
	for _, e := range b.Exemptions {
		members.Exemptions = append(members.Exemptions, e.Marshal())
	}
	data, err := json.Marshal(members)
	if err != nil {
		return nil, fmt.Errorf("write grant: %w", err)
	}
	all := map[string]json.RawMessage{}
	for _, part := range [][]byte{b.Grant.Marshal(), data} {
		if err := json.Unmarshal(part, &all); err != nil {
			return nil, fmt.Errorf("write grant: %w", err)
		}
	}
	out, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write grant: %w", err)
	}
	if len(out) > dsse.MaxEnvelope {
		return nil, fmt.Errorf("write grant: it has %d bytes; at most %d are allowed", len(out), dsse.MaxEnvelope)
	}
	return append(out, '\n'), nil
}
