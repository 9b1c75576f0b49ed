package tokens

import (
	"context"
	"net"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
)

// newerSource has a value of the generation after the one that it is asked about.
type newerSource struct{}

func (newerSource) Credential(context.Context, authz.CredentialRef) (authz.Credential, error) {
	return authz.Credential{Generation: 1}, nil
}

func (newerSource) Newer(_ context.Context, _ authz.CredentialRef, generation uint64) (authz.Credential, error) {
	return authz.Credential{Generation: generation + 1}, nil
}

// plainSource cannot look for newer values.
type plainSource struct{ authz.CredentialSource }

// TestNewerIsOfTheSource: a newer value comes from a source that has one, and no token does.
func TestNewerIsOfTheSource(t *testing.T) {
	dial := func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
	s, err := New(Config{Source: newerSource{}, Dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := s.Newer(t.Context(), authz.CredentialRef{}, 7); err != nil || c.Generation != 8 {
		t.Errorf("generation %d, %v", c.Generation, err)
	}
	if _, err := s.Newer(t.Context(), authz.CredentialRef{Token: authz.TokenSpec{Kind: authz.TokenOAuth2}}, 7); err == nil {
		t.Error("a token has a newer value")
	}
	if s, err = New(Config{Source: plainSource{newerSource{}}, Dial: dial}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Newer(t.Context(), authz.CredentialRef{}, 7); err == nil {
		t.Error("a source that has no newer values gave one")
	}
}
