// Package transport is HTTPS to one BMC: its certificate is verified, its redirects are bounded, and what
// goes wrong has a kind. Every protocol of package bmc that is HTTP goes through it.
package transport

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/internal/fault"
)

// Config says where a BMC is and how it is trusted.
type Config struct {
	Address     string        // host:port
	CA          string        // PEM; empty means the system's certificate pool
	Fingerprint string        // SHA-256 of the BMC's certificate; when set it alone decides
	DialTimeout time.Duration // default 5 s
	// ClockSkew tolerates a CA-signed certificate that is this far outside its dates (hazard H17: BMC
	// clocks are wrong). A pinned fingerprint never looks at dates.
	ClockSkew time.Duration
}

// Validate fills in the defaults and names the first key that is wrong.
func (c *Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return fault.Newf(fault.Invalid, "BMC transport: address: %q is not host:port", c.Address)
	}
	if c.ClockSkew < 0 {
		return fault.Newf(fault.Invalid, "BMC transport: clockSkew: %s is negative", c.ClockSkew)
	}
	if c.DialTimeout <= 0 {
		c.DialTimeout = 5 * time.Second
	}
	return nil
}

// Client returns an HTTP client that speaks to this BMC alone, over one connection.
func Client(cfg Config) (*http.Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	tr, err := cfg.transport()
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: tr, CheckRedirect: sameOriginOnly}, nil
}

// sameOriginOnly keeps the token on the host it was given by, and lets only reads be redirected.
func sameOriginOnly(req *http.Request, via []*http.Request) error {
	first := via[0]
	switch {
	case req.URL.Scheme != "https" || req.URL.Host != first.URL.Host:
		return &fault.Error{Kind: fault.Unsafe, What: "redirect refused", Evidence: "to another origin, " + req.URL.Redacted()}
	case first.Method != http.MethodGet:
		return &fault.Error{Kind: fault.Unsafe, What: "redirect refused", Evidence: "of a " + first.Method}
	case len(via) >= 3:
		return &fault.Error{Kind: fault.Internal, What: "redirect refused", Evidence: "the third in a row"}
	}
	return nil
}

// tlsConfig verifies the BMC by pinned certificate or by CA; there is no third way.
func (c *Config) tlsConfig() (*tls.Config, error) {
	host, _, _ := net.SplitHostPort(c.Address) // Validate has seen to it
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if c.Fingerprint != "" {
		want, err := bmc.ParseFingerprint(c.Fingerprint)
		if err != nil {
			return nil, fault.Newf(fault.Invalid, "BMC transport: fingerprint: %w", err)
		}
		// The library's own check is replaced, not skipped: it knows no pins.
		out.InsecureSkipVerify = true
		out.VerifyConnection = func(cs tls.ConnectionState) error {
			if got := sha256.Sum256(cs.PeerCertificates[0].Raw); got != want {
				return &fault.Error{Kind: fault.Unsafe, What: "verify certificate", Evidence: fmt.Sprintf("fingerprint is %x, pinned is %x", got, want),
					Next: "find out who answers at this address; after a certificate renewal pin the new one"}
			}
			return nil
		}
		return out, nil
	}
	if c.CA != "" {
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM([]byte(c.CA)) {
			return nil, fault.New(fault.Invalid, "BMC transport: ca: holds no PEM certificate")
		}
	}
	if c.ClockSkew > 0 {
		roots, skew := out.RootCAs, c.ClockSkew
		out.InsecureSkipVerify = true
		out.VerifyConnection = func(cs tls.ConnectionState) error {
			return verifySkewed(cs.PeerCertificates, roots, host, time.Now(), skew)
		}
	}
	return out, nil
}

// verifySkewed is the usual verification at the moment within skew of now that suits the leaf best.
func verifySkewed(chain []*x509.Certificate, roots *x509.CertPool, host string, now time.Time, skew time.Duration) error {
	leaf, at := chain[0], now
	if early := leaf.NotBefore; now.Before(early) && early.Sub(now) <= skew {
		at = early
	}
	if late := leaf.NotAfter; now.After(late) && now.Sub(late) <= skew {
		at = late
	}
	inter := x509.NewCertPool()
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, DNSName: host, CurrentTime: at})
	return err
}

func (c *Config) transport() (*http.Transport, error) {
	tc, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	d := &net.Dialer{Timeout: c.DialTimeout, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:                  nil, // a BMC is never behind the environment's proxy
		DialContext:            d.DialContext,
		TLSClientConfig:        tc,
		TLSHandshakeTimeout:    2 * c.DialTimeout,
		MaxConnsPerHost:        1,
		MaxIdleConnsPerHost:    1,
		IdleConnTimeout:        2 * time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
	}, nil
}

// Fault gives an error of a Client its kind. It tells no answer at all from an answer that broke off: after the latter the effect of the
// request is unknown (hazards H01, H13).
func Fault(what string, err error) error {
	out := &fault.Error{Kind: fault.Timeout, What: what, Err: err}
	var (
		fe   *fault.Error
		op   *net.OpError
		cert *tls.CertificateVerificationError
		auth x509.UnknownAuthorityError
		name x509.HostnameError
		bad  x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &fe):
		out.Kind = fe.Kind
	case errors.As(err, &cert), errors.As(err, &auth), errors.As(err, &name), errors.As(err, &bad):
		out.Kind, out.Next = fault.Unsafe, "pin the certificate's fingerprint or name the CA that signed it"
	case errors.As(err, new(tls.RecordHeaderError)), errors.Is(err, http.ErrSchemeMismatch):
		out.Kind, out.Evidence = fault.Unsupported, "what answers there does not speak TLS"
	case errors.As(err, &op) && op.Op == "dial":
		out.Kind = fault.Unreachable
	}
	return out
}
