// Package bmclib drives BMCs that only github.com/bmc-toolbox/bmclib reaches: ASRock Rack boards by their
// own HTTPS API. It also offers this project's IPMI driver to bmclib as a provider, in the place of the
// ipmitool binary, which is never run.
//
// bmclib tries its providers one after another until one succeeds. That is a silent change of protocol, so
// the registry given to it holds exactly one provider. The others are left out: Intel AMT, because the
// library beneath does not verify certificates and cannot be told to (package amt speaks it instead), and
// Dell, Supermicro and OpenBMC, because what they add to Redfish (firmware, BIOS settings, screenshots,
// media) is nothing that switching and booting a machine needs.
//
// Its loggers are discarded on purpose: at a high verbosity they print requests, logins among them.
package bmclib

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"time"

	vendor "github.com/bmc-toolbox/bmclib/v2"
	vendorerrors "github.com/bmc-toolbox/bmclib/v2/errors"
	"github.com/bmc-toolbox/bmclib/v2/providers/asrockrack"
	"github.com/go-logr/logr"
	"github.com/jacobweinstock/registrar"
	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/ipmi"
	"rerack.dev/rerack/bmc/transport"
	"rerack.dev/rerack/internal/fault"
)

// maxBody bounds one answer of a BMC, in bytes.
const maxBody = 1 << 20

// Opener makes drivers for a bmc.Fleet. The provider follows the endpoint's port: 623 is IPMI, anything
// else is ASRock Rack's API on HTTPS.
type Opener struct {
	DialTimeout time.Duration // default 5 s
	IPMI        ipmi.Config   // limits of the IPMI provider
	// IPMIPort is the port that stands for IPMI; default 623.
	IPMIPort string
}

var _ bmc.Opener = Opener{}

// Probe refuses: which vendor API a box speaks shows only after a login, so it is declared, never probed.
func (o Opener) Probe(context.Context, bmc.Endpoint) error {
	return fault.New(fault.Unsupported, "bmclib is not probed for; declare protocol bmclib")
}

// Open implements bmc.Opener.
func (o Opener) Open(ctx context.Context, ep bmc.Endpoint, cred bmc.Credential) (driver.BMC, error) {
	addr, err := ep.HostPort("443")
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "bmclib address: %w", err)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "bmclib address: %w", err)
	}
	want := o.IPMIPort
	if want == "" {
		want = "623"
	}
	reg := registrar.NewRegistry()
	d := &Driver{}
	var rack *asrockrack.ASRockRack
	if port == want {
		p := &Provider{Opener: ipmi.Opener{Config: o.IPMI}, Endpoint: ep, Credential: cred}
		reg.Register(p.Name(), "ipmi", p.Features(), nil, p)
		d.ipmi = p
	} else {
		hc, err := transport.Client(transport.Config{Address: addr, CA: ep.CA, Fingerprint: ep.Fingerprint, DialTimeout: o.DialTimeout})
		if err != nil {
			return nil, err
		}
		if hc.Jar, err = cookiejar.New(nil); err != nil {
			return nil, fault.Newf(fault.Internal, "cookie jar: %w", err)
		}
		d.http = &witness{next: hc.Transport}
		d.closeIdle = hc.CloseIdleConnections
		hc.Transport = d.http
		// The provider puts both into a form without encoding them.
		rack = asrockrack.NewWithOptions(addr, url.QueryEscape(cred.User), url.QueryEscape(cred.Password.Reveal()), logr.Discard(), asrockrack.WithHTTPClient(hc))
		reg.Register(asrockrack.ProviderName, asrockrack.ProviderProtocol, asrockrack.Features, nil, rack)
	}
	d.c = vendor.NewClient(host, cred.User, cred.Password.Reveal(), vendor.WithRegistry(reg), vendor.WithLogger(logr.Discard()))
	if err := d.c.Open(ctx); err != nil {
		f := d.fault("log in", err)
		if rack != nil {
			f = d.notOpened(ctx, rack, cred.User, err)
		}
		return nil, f
	}
	return d, nil
}

// notOpened ends a failed login over HTTPS and says why it failed. A login that succeeded on a board that
// the provider does not know leaves a session behind, which must not fill the BMC's table (hazard H12);
// bmclib itself forgets it.
func (d *Driver) notOpened(ctx context.Context, rack *asrockrack.ASRockRack, user string, cause error) error {
	defer d.closeIdle()
	status, f := d.http.status, d.fault("log in", cause)
	switch {
	case status == http.StatusUnauthorized, errors.Is(cause, vendorerrors.ErrLoginFailed):
		return &fault.Error{Kind: fault.Unauthorized, What: "log in as " + user, Evidence: "refused", Next: "correct the credential"}
	case d.http.err == nil && status == http.StatusOK:
		// Every answer was a good one, so it is the board that is wrong.
		f = &fault.Error{Kind: fault.Unsupported, What: "log in", Evidence: cause.Error(), Next: "declare another protocol for this BMC"}
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := rack.Close(bye); err != nil && f == nil {
		return d.fault("log out", err)
	}
	return f
}

// Driver is one logged-in BMC behind bmclib.
type Driver struct {
	c         *vendor.Client
	http      *witness  // nil over IPMI
	closeIdle func()    // of http
	ipmi      *Provider // nil over HTTPS
}

var _ driver.BMC = (*Driver)(nil)

// fault gives a bmclib error its kind: from what the transport saw, because the error itself is text.
func (d *Driver) fault(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case d.ipmi != nil && d.ipmi.last != nil:
		return d.ipmi.last
	case d.http != nil && d.http.err != nil:
		return transport.Fault(what, d.http.err)
	case d.http != nil && d.http.status == http.StatusUnauthorized:
		return &fault.Error{Kind: fault.Busy, What: what, Evidence: "HTTP 401", Err: driver.ErrSessionLost}
	case d.http != nil && (d.http.status == http.StatusServiceUnavailable || d.http.status == http.StatusConflict || d.http.status == http.StatusTooManyRequests):
		return &fault.Error{Kind: fault.Busy, What: what, Err: err}
	}
	return &fault.Error{Kind: fault.Internal, What: what, Err: err}
}

// Power implements driver.BMC.
func (d *Driver) Power(ctx context.Context) (driver.Reading, error) {
	state, err := d.c.GetPowerState(ctx)
	if err != nil {
		return driver.Reading{State: driver.PowerUnknown}, d.fault("read power state", contextFirst(ctx, err))
	}
	r := driver.Reading{At: time.Now(), Source: "bmclib", Detail: state, State: driver.PowerChanging}
	switch strings.ToLower(state) {
	case "on":
		r.State = driver.PowerOn
	case "off":
		r.State = driver.PowerOff
	case "":
		r.State = driver.PowerUnknown
		return r, fault.New(fault.Unsupported, "the BMC tells no power state")
	}
	return r, nil
}

func contextFirst(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// SetPower implements driver.BMC.
func (d *Driver) SetPower(ctx context.Context, t driver.Target) error {
	word, end := "off", driver.PowerOff
	switch t {
	case driver.On:
		word, end = "on", driver.PowerOn
	case driver.ShutDown:
		word = "soft"
	case driver.Off:
	default:
		return fault.Newf(fault.Invalid, "power target %q", t)
	}
	r, err := d.Power(ctx)
	if err != nil || r.State == end {
		return err
	}
	if _, err := d.c.SetPowerState(ctx, word); err != nil {
		return d.fault("set power "+string(t), contextFirst(ctx, err))
	}
	return nil
}

// Boot implements driver.BMC where the provider does: over IPMI.
func (d *Driver) Boot(ctx context.Context) (driver.BootOverride, error) {
	if d.ipmi == nil {
		return driver.BootOverride{}, fault.New(fault.Unsupported, "ASRock Rack's API has no boot override")
	}
	return d.ipmi.drv.Boot(ctx)
}

// SetBoot implements driver.BMC where the provider does: over IPMI.
func (d *Driver) SetBoot(ctx context.Context, b driver.BootOverride) error {
	switch b.Device {
	case driver.BootDefault, driver.BootPXE, driver.BootDisk, driver.BootHTTP:
	default:
		return fault.Newf(fault.Invalid, "boot device %q", b.Device)
	}
	if d.ipmi == nil {
		return fault.New(fault.Unsupported, "ASRock Rack's API has no boot override")
	}
	return d.ipmi.drv.SetBoot(ctx, b)
}

// Inventory implements driver.BMC. ASRock Rack's API knows no UUID.
func (d *Driver) Inventory(ctx context.Context) (driver.Inventory, error) {
	if d.ipmi != nil {
		return d.ipmi.drv.Inventory(ctx)
	}
	dev, err := d.c.Inventory(ctx)
	if err != nil {
		return driver.Inventory{}, d.fault("read inventory", contextFirst(ctx, err))
	}
	inv := driver.Inventory{Manufacturer: dev.Vendor, Model: dev.Model, Serial: dev.Serial}
	for _, n := range dev.NICs {
		if mac, err := net.ParseMAC(n.ID); err == nil && len(mac) == 6 {
			inv.NICs = append(inv.NICs, driver.NIC{Name: n.Description, MAC: mac})
		}
	}
	return inv, nil
}

// Close implements driver.BMC.
func (d *Driver) Close(ctx context.Context) error {
	if d.closeIdle != nil {
		defer d.closeIdle()
	}
	err := d.fault("log out", d.c.Close(ctx))
	if errors.Is(err, driver.ErrSessionLost) {
		return nil
	}
	return err
}

// witness remembers how the last request went and bounds the length of answers.
type witness struct {
	next   http.RoundTripper
	status int
	err    error
}

func (w *witness) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := w.next.RoundTrip(r)
	w.status, w.err = 0, err
	if err != nil {
		return nil, err
	}
	w.status = resp.StatusCode
	body := resp.Body
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(body, maxBody), body}
	return resp, nil
}
