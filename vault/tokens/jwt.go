package tokens

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// signedToken gets a JSON Web Token that lives so long from now.
func (s *Source) signedToken(ctx context.Context, ref authz.CredentialRef, now time.Time, life time.Duration) (authz.Secret, error) {
	switch {
	case s.cfg.Sign == nil:
		return authz.Secret{}, errors.New("nothing signs here")
	case life < time.Second:
		return authz.Secret{}, errors.New("its lifetime is less than a second")
	}
	claims, err := claimsOf(ref.Token, now, life)
	if err != nil {
		return authz.Secret{}, err
	}
	return s.cfg.Sign(ctx, ref, claims)
}

// claimsOf returns the claims of a token (RFC 7519, section 4.1). Each token has
// an id of its own; those that are registered win over further ones.
func claimsOf(spec authz.TokenSpec, now time.Time, life time.Duration) (map[string]any, error) {
	claims := map[string]any{}
	if spec.Claims != "" {
		decoder := json.NewDecoder(strings.NewReader(spec.Claims))
		decoder.UseNumber()
		if err := decoder.Decode(&claims); err != nil || claims == nil {
			return nil, errors.New("the further claims are not a JSON object")
		}
	}
	claims["iat"], claims["exp"], claims["jti"] = now.Add(-spec.Backdate).Unix(), now.Unix()+int64(life.Seconds()), rand.Text()
	for name, value := range map[string]string{"iss": spec.Issuer, "sub": spec.Subject, "aud": spec.Audience} {
		if value != "" {
			claims[name] = value
		}
	}
	return claims, nil
}
