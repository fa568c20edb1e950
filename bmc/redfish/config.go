// Package redfish drives a BMC over Redfish (DMTF DSP0266) on HTTPS.
//
// It speaks the few requests it needs itself, on one held session: a power read is one GET of one
// resource. gofish supplies the schema's vocabulary. Its client is not used, because it ties a context to
// a connection, follows links without a bound, and fails a whole resource on one odd field.
package redfish

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/internal/fault"
)

// Config of one BMC.
type Config struct {
	Address     string // host:port
	User        string
	Password    bmc.Secret
	CA          string // PEM; empty means the system's certificate pool
	Fingerprint string // SHA-256 of the BMC's certificate; when set it alone decides
	// UUID and Serial choose the system on a BMC that manages several.
	UUID, Serial string
	DialTimeout  time.Duration // default 5 s
	MaxBody      int64         // bytes of one answer; default 1 MiB
	MaxRequests  int           // HTTP requests in one driver call; default 256
	// ClockSkew tolerates a CA-signed certificate that is this far outside its dates (hazard H17: BMC
	// clocks are wrong). A pinned fingerprint never looks at dates.
	ClockSkew time.Duration
}

// Validate fills in the defaults and names the first key that is wrong.
func (c *Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return fault.Newf(fault.Invalid, "redfish config: address: %q is not host:port", c.Address)
	}
	if c.DialTimeout <= 0 {
		c.DialTimeout = 5 * time.Second
	}
	if c.MaxBody <= 0 {
		c.MaxBody = 1 << 20
	}
	if c.MaxRequests <= 0 {
		c.MaxRequests = 256
	}
	if c.ClockSkew < 0 {
		return fault.Newf(fault.Invalid, "redfish config: clockSkew: %s is negative", c.ClockSkew)
	}
	return nil
}

// tlsConfig verifies the BMC by pinned certificate or by CA; there is no third way.
func (c *Config) tlsConfig() (*tls.Config, error) {
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "redfish config: address: %q is not host:port", c.Address)
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if c.Fingerprint != "" {
		want, err := bmc.ParseFingerprint(c.Fingerprint)
		if err != nil {
			return nil, fault.Newf(fault.Invalid, "redfish config: fingerprint: %w", err)
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
			return nil, fault.New(fault.Invalid, "redfish config: ca: holds no PEM certificate")
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
