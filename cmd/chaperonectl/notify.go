package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

const (
	notifyTimeout = 10 * time.Second
	maxContacts   = 20
	maxAnswer     = 4 << 10

	notifyRetries    = 3                // of one contact, after network errors, 429 and 5xx
	notifyWait       = time.Second      // before the first retry; it doubles
	notifyLongest    = 30 * time.Second // that Retry-After is followed
	notifyAltogether = 5 * time.Minute

	exitNotInformed = 3 // the grant is issued, and a contact was not informed
)

// notifyFlags are how contacts are informed.
type notifyFlags struct {
	off       bool
	addresses []string
	wait      time.Duration // before the first retry; notifyWait by default
}

func (f *notifyFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.off, "no-notify", false, "inform nobody")
	f.addAddresses(cmd)
}

func (f *notifyFlags) addAddresses(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.addresses, "notify-address", nil, "a `CIDR` that webhooks may resolve to, beside public addresses; repeatable")
}

// errNotPublic is an address that is not dialled.
var errNotPublic = errors.New("is not a public address")

func (c *cli) notifyCommand() *cobra.Command {
	var f notifyFlags
	var names []string
	cmd := &cobra.Command{
		Use: "notify DIR", Short: "Send the notice of the grant in force again", Args: oneFolder(),
		Long: "Send the signed notice of the grant in force once more to the webhooks of the manifest's contacts. Its id is the same,\n" +
			"by which a receiver knows it again.\n\nExit status 0: every contact was informed. 1: failure. 2: usage. 3: a contact was not informed.",
		Example: "  chaperonectl plugin notify plugins/weather/1.4.0 --contact 'on call'",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRequest(cmd.Context(), args[0], func(r *repo, e *governance.Evaluation) error {
				return c.notifyAgain(cmd.Context(), r, e, names, &f)
			})
		},
	}
	f.addAddresses(cmd)
	cmd.Flags().StringArrayVar(&names, "contact", nil, "the `NAME` of a contact, in place of all; repeatable")
	return c.repoFlag(cmd)
}

func (c *cli) notifyAgain(ctx context.Context, r *repo, e *governance.Evaluation, names []string, f *notifyFlags) error {
	q := e.Request
	if e.Issued == nil {
		return fmt.Errorf("notify %s: no grant is issued; use promote", q.Dir)
	}
	notice, event, err := r.Notice(q, e.Issued.Digest)
	switch {
	case err != nil:
		return err
	case notice == nil:
		return fmt.Errorf("notify %s: there is no notice of the grant in force, %s; name the version that was promoted or rolled back to", q.Dir, e.Issued.Digest)
	}
	contacts := q.Manifest.Spec.Contacts
	if len(names) > 0 {
		contacts = slices.DeleteFunc(slices.Clone(contacts), func(one configs.Contact) bool { return !slices.Contains(names, one.Name) })
	}
	if !slices.ContainsFunc(contacts, func(one configs.Contact) bool { return one.Webhook != "" }) {
		return command.Usage("notify: none of the contacts has a webhook; see the contacts of the manifest")
	}
	return c.notify(ctx, q, contacts, event, notice, f)
}

// cloudEvent is an event in the structured mode of CloudEvents 1.0
// (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md).
type cloudEvent struct {
	SpecVersion     string          `json:"specversion"`
	ID              string          `json:"id"`
	Source          string          `json:"source"`
	Type            string          `json:"type"`
	Subject         string          `json:"subject"`
	Time            time.Time       `json:"time"`
	DataContentType string          `json:"datacontenttype"`
	Data            json.RawMessage `json:"data"` // the signed envelope
}

// notify sends a signed notice to the webhooks of the contacts. The URLs are the author's:
// only https is used, no redirect is followed, and only public addresses are dialled, or
// those that the operator names. Contacts that were not informed are an error with status
// exitNotInformed: what the notice is about has happened.
func (c *cli) notify(ctx context.Context, q *governance.Request, contacts []configs.Contact, event string, notice *dsse.Envelope, f *notifyFlags) error {
	ctx, cancel := context.WithTimeout(ctx, notifyAltogether)
	defer cancel()
	var meta struct {
		Plugin   string    `json:"plugin"`
		IssuedAt time.Time `json:"issuedAt"`
	}
	if err := json.Unmarshal(notice.Unverified, &meta); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	body, err := json.Marshal(cloudEvent{
		SpecVersion: "1.0", ID: notice.Digest(), Source: "urn:chaperone:plugin:" + meta.Plugin, Type: "dev.chaperone.plugin." + event,
		Subject: meta.Plugin, Time: meta.IssuedAt, DataContentType: "application/json", Data: notice.Marshal(),
	})
	if err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	client, err := notifyClient(f.addresses, cmp.Or(f.wait, notifyWait))
	if err != nil {
		return command.ExitError{Status: exitNotInformed, Err: fmt.Errorf("the grant is issued, and no contact was informed: %w; send the notice again: chaperonectl plugin notify %s", err, phrase.ShellWord(q.Dir))}
	}
	var failed []error
	again := []string{"chaperonectl plugin notify " + phrase.ShellWord(q.Dir)}
	for i, contact := range contacts {
		if contact.Webhook == "" {
			continue
		}
		err := fmt.Errorf("a call informs %d contacts; name this one by --contact", maxContacts)
		if i < maxContacts {
			err = post(ctx, client, contact.Webhook, body)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("inform %q: %w", contact.Name, err))
			again = append(again, "--contact "+phrase.ShellWord(contact.Name))
			continue
		}
		c.say("informed %q", contact.Name)
	}
	if len(failed) > 0 {
		return command.ExitError{Status: exitNotInformed, Err: fmt.Errorf("the grant is issued, and not every contact was informed: %w; send the notice again: %s", errors.Join(failed...), strings.Join(again, " "))}
	}
	return nil
}

// notifyClient returns a client that dials public addresses and those of allowed, and tries
// again later what may then succeed.
func notifyClient(allowed []string, wait time.Duration) (*retryablehttp.Client, error) {
	var prefixes []netip.Prefix
	for _, s := range allowed {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("--notify-address %q is not a range of addresses, as in 10.0.0.0/8", s)
		}
		prefixes = append(prefixes, p)
	}
	dialer := &net.Dialer{Timeout: notifyTimeout, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		addr := to.Addr().Unmap()
		if slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) }) || authz.PublicUnicast(addr) {
			return nil
		}
		return fmt.Errorf("%s %w; allow it with --notify-address", addr, errNotPublic)
	}}
	client := retryablehttp.NewClient()
	client.Logger = nil
	client.RetryMax, client.RetryWaitMin, client.RetryWaitMax = notifyRetries, wait, notifyLongest
	client.Backoff, client.CheckRetry, client.ErrorHandler = notifyBackoff, notifyRetry, retryablehttp.PassthroughErrorHandler
	client.HTTPClient = &http.Client{
		Timeout:       notifyTimeout,
		Transport:     &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true, TLSHandshakeTimeout: notifyTimeout, MaxResponseHeaderBytes: maxAnswer},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return client, nil
}

// notifyBackoff is that of the library, which follows Retry-After, with a bound.
func notifyBackoff(least, longest time.Duration, attempt int, res *http.Response) time.Duration {
	return min(max(retryablehttp.DefaultBackoff(least, longest, attempt, res), 0), longest)
}

// notifyRetry is the policy of the library, network errors, 429 and 5xx other than 501, apart
// from addresses that are refused.
func notifyRetry(ctx context.Context, res *http.Response, err error) (bool, error) {
	if errors.Is(err, errNotPublic) {
		return false, err
	}
	return retryablehttp.DefaultRetryPolicy(ctx, res, err)
}

func post(ctx context.Context, client *retryablehttp.Client, target string, body []byte) error {
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "https" || u.User != nil {
		return errors.New("its webhook is not an https URL without a user")
	}
	req, err := retryablehttp.NewRequestWithContext(ctx, http.MethodPost, u.String(), body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/cloudevents+json; charset=utf-8")
	res, err := client.Do(req)
	if err != nil {
		if e, is := errors.AsType[*url.Error](err); is {
			err = e.Err // the URL may have a token
		}
		return err
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, maxAnswer) // an answer is not used
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("its webhook answered %d", res.StatusCode)
	}
	return nil
}
