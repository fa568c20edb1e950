package redfish

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	schema "github.com/stmcginnis/gofish/redfish"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// Driver is one logged-in BMC. It implements driver.BMC, driver.Identifier and driver.PowerRestorer.
type Driver struct {
	c      *conn
	cfg    Config
	quirks quirks
	system string // path of the one ComputerSystem
}

var (
	_ driver.BMC           = (*Driver)(nil)
	_ driver.Identifier    = (*Driver)(nil)
	_ driver.PowerRestorer = (*Driver)(nil)
)

type ref struct {
	ID string `json:"@odata.id"`
}

type root struct {
	Vendor  string
	Product string
	Oem     map[string]any
	Systems ref
	Chassis ref
	Links   struct{ Sessions ref }
}

// Probe reports whether a Redfish service root answers over trusted TLS. It sends no credentials.
func Probe(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	c, err := newConn(cfg)
	if err != nil {
		return err
	}
	defer c.http.CloseIdleConnections()
	r, err := c.root(ctx)
	if err != nil {
		return err
	}
	if r.Systems.ID == "" {
		return fault.New(fault.Unsupported, "the service root has no Systems")
	}
	return nil
}

func (c *conn) root(ctx context.Context) (root, error) {
	var r root
	_, err := c.get(ctx, "/redfish/v1/", &r)
	if fault.Is(err, fault.NotFound) {
		return r, &fault.Error{Kind: fault.Unsupported, What: "no Redfish service root", Err: err}
	}
	return r, err
}

// Open logs in and finds the system. Refused credentials are Unauthorized, a full session table is Busy.
func Open(ctx context.Context, cfg Config) (*Driver, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c, err := newConn(cfg)
	if err != nil {
		return nil, err
	}
	d := &Driver{c: c, cfg: cfg}
	if err := d.open(ctx); err != nil {
		// A session that was made before the failure must not fill the BMC's table; the caller's time
		// may be used up, so the logout has its own.
		bg, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		return nil, errors.Join(err, d.Close(bg))
	}
	return d, nil
}

func (d *Driver) open(ctx context.Context) error {
	r, err := d.c.root(ctx)
	if err != nil {
		return err
	}
	if err := d.c.login(ctx, r.Links.Sessions.ID, d.cfg); err != nil {
		return err
	}
	if err := d.findSystem(ctx, r.Systems.ID); err != nil {
		return err
	}
	s, _, err := d.read(ctx)
	if err != nil {
		return err
	}
	words := []string{r.Vendor}
	for k := range r.Oem {
		words = append(words, k)
	}
	slices.Sort(words[1:])
	d.quirks = quirksFor(append(words, s.Manufacturer, r.Product)...)
	return nil
}

func (c *conn) login(ctx context.Context, sessions string, cfg Config) error {
	if sessions == "" {
		sessions = "/redfish/v1/SessionService/Sessions"
	}
	a, err := c.do(ctx, http.MethodPost, sessions, map[string]string{"UserName": cfg.User, "Password": cfg.Password.Reveal()}, nil)
	if err != nil {
		return err
	}
	switch {
	case a.status == http.StatusUnauthorized, a.status == http.StatusForbidden:
		return &fault.Error{Kind: fault.Unauthorized, What: "log in as " + cfg.User, Evidence: fmt.Sprintf("HTTP %d%s", a.status, message(a.body)),
			Next: "correct the credential"}
	case a.status == http.StatusBadRequest && strings.Contains(strings.ToLower(message(a.body)), "session"):
		return &fault.Error{Kind: fault.Busy, What: "log in", Evidence: "HTTP 400" + message(a.body), Next: "wait until sessions on the BMC expire"}
	case a.status != http.StatusCreated && a.status != http.StatusOK:
		return statusFault(http.MethodPost, sessions, a)
	}
	c.token = a.header.Get("X-Auth-Token")
	if c.token == "" {
		return fault.New(fault.Unsupported, "the BMC made a session without X-Auth-Token")
	}
	c.session = a.header.Get("Location")
	if c.session == "" {
		var body ref
		if a.decode(&body) == nil {
			c.session = body.ID
		}
	}
	return nil
}

// findSystem picks the ComputerSystem: the only one, or the one with the expected UUID or serial. It
// never picks the first of many.
func (d *Driver) findSystem(ctx context.Context, systems string) error {
	members, err := d.c.members(ctx, systems)
	if err != nil {
		return err
	}
	if len(members) == 1 {
		d.system = members[0]
		return nil
	}
	var seen []string
	for _, m := range members {
		var s system
		if _, err := d.c.get(ctx, m, &s); err != nil {
			return err
		}
		if (d.cfg.UUID != "" && strings.EqualFold(s.UUID, d.cfg.UUID)) ||
			(d.cfg.Serial != "" && (strings.EqualFold(s.SerialNumber, d.cfg.Serial) || strings.EqualFold(s.SKU, d.cfg.Serial))) {
			d.system = m
			return nil
		}
		seen = append(seen, s.UUID)
	}
	return &fault.Error{Kind: fault.NotFound, What: "find the system", Evidence: fmt.Sprintf("%d systems, UUIDs %q, none is the expected one", len(members), seen),
		Next: "declare the machine's uuid or serial"}
}

// members lists a collection with its further pages. Pages that come round again end it.
func (c *conn) members(ctx context.Context, link string) ([]string, error) {
	var out []string
	pages := map[string]bool{}
	for link != "" && !pages[link] {
		pages[link] = true
		var page struct {
			Members []ref
			Next    string `json:"Members@odata.nextLink"`
		}
		if _, err := c.get(ctx, link, &page); err != nil {
			return nil, err
		}
		for _, m := range page.Members {
			if m.ID != "" && !slices.Contains(out, m.ID) {
				out = append(out, m.ID)
			}
		}
		link = page.Next
	}
	return out, nil
}

// system is the part of a ComputerSystem that is used.
type system struct {
	PowerState         schema.PowerState
	UUID, SerialNumber string
	SKU                string
	Manufacturer       string
	Model              string
	PowerRestorePolicy *string
	Boot               boot
	EthernetInterfaces ref
	Links              struct{ Chassis []ref }
	Settings           struct {
		SettingsObject ref
	} `json:"@Redfish.Settings"`
	Actions struct {
		Reset struct {
			Target     string             `json:"target"`
			Types      []schema.ResetType `json:"ResetType@Redfish.AllowableValues"`
			ActionInfo string             `json:"@Redfish.ActionInfo"`
		} `json:"#ComputerSystem.Reset"`
	}
}

type boot struct {
	Enabled schema.BootSourceOverrideEnabled  `json:"BootSourceOverrideEnabled"`
	Target  schema.BootSourceOverrideTarget   `json:"BootSourceOverrideTarget"`
	Mode    schema.BootSourceOverrideMode     `json:"BootSourceOverrideMode"`
	Targets []schema.BootSourceOverrideTarget `json:"BootSourceOverrideTarget@Redfish.AllowableValues"`
}

func (d *Driver) read(ctx context.Context) (s system, etag string, err error) {
	etag, err = d.c.get(ctx, d.system, &s)
	return s, etag, err
}

// Power reads the system resource, nothing else.
func (d *Driver) Power(ctx context.Context) (driver.Reading, error) {
	d.c.requests = 0
	var s struct{ PowerState schema.PowerState }
	if _, err := d.c.get(ctx, d.system, &s); err != nil {
		return driver.Reading{State: driver.PowerUnknown}, err
	}
	r := driver.Reading{State: powerState(s.PowerState), At: time.Now(), Source: "redfish", Detail: string(s.PowerState)}
	if r.State == driver.PowerUnknown {
		return r, fault.New(fault.Unsupported, "the BMC tells no power state")
	}
	return r, nil
}

// powerState maps Resource.PowerState: what is neither on nor off is changing, and nothing is unknown.
func powerState(p schema.PowerState) driver.PowerState {
	switch p {
	case schema.OnPowerState:
		return driver.PowerOn
	case schema.OffPowerState:
		return driver.PowerOff
	case "":
		return driver.PowerUnknown
	}
	return driver.PowerChanging
}

// SetPower posts ComputerSystem.Reset when the state read before differs from the end wanted.
func (d *Driver) SetPower(ctx context.Context, t driver.Target) error {
	d.c.requests = 0
	s, _, err := d.read(ctx)
	if err != nil {
		return err
	}
	end, choices := driver.PowerOff, []schema.ResetType{schema.ForceOffResetType}
	switch t {
	case driver.On:
		end, choices = driver.PowerOn, []schema.ResetType{schema.OnResetType, schema.ForceOnResetType}
	case driver.ShutDown:
		choices = []schema.ResetType{schema.GracefulShutdownResetType}
	case driver.Off:
	default:
		return fault.Newf(fault.Invalid, "power target %q", t)
	}
	switch powerState(s.PowerState) {
	case end:
		return nil
	case driver.PowerUnknown:
		return fault.New(fault.Unsupported, "the BMC tells no power state, so nothing is sent")
	}
	reset, err := d.resetType(ctx, s, choices)
	if err != nil {
		return err
	}
	target := s.Actions.Reset.Target
	if target == "" {
		target = strings.TrimSuffix(d.system, "/") + "/Actions/ComputerSystem.Reset"
	}
	a, err := d.c.do(ctx, http.MethodPost, target, map[string]schema.ResetType{"ResetType": reset}, nil)
	if err != nil {
		return err
	}
	switch {
	case a.status >= 200 && a.status < 300:
		return nil
	case a.status == http.StatusConflict, a.status == http.StatusBadRequest:
		// "Already off" comes as 409 or 400; it is success only when the state says so (hazard H05).
		if now, _, err := d.read(ctx); err == nil && powerState(now.PowerState) == end {
			return nil
		}
	}
	return statusFault(http.MethodPost, target, a)
}

// resetType is the first of choices that the BMC announces; one that announces nothing gets the first.
func (d *Driver) resetType(ctx context.Context, s system, choices []schema.ResetType) (schema.ResetType, error) {
	allowed := s.Actions.Reset.Types
	if len(allowed) == 0 && s.Actions.Reset.ActionInfo != "" {
		var info struct {
			Parameters []struct {
				Name            string
				AllowableValues []schema.ResetType
			}
		}
		if _, err := d.c.get(ctx, s.Actions.Reset.ActionInfo, &info); err != nil {
			return "", err
		}
		for _, p := range info.Parameters {
			if p.Name == "ResetType" {
				allowed = p.AllowableValues
			}
		}
	}
	if len(allowed) == 0 {
		return choices[0], nil
	}
	for _, c := range choices {
		if slices.Contains(allowed, c) {
			return c, nil
		}
	}
	return "", &fault.Error{Kind: fault.Unsupported, What: fmt.Sprintf("reset type %s", choices[0]), Evidence: fmt.Sprintf("the BMC offers %v", allowed)}
}

// Close deletes the session. A session that is gone already is success.
func (d *Driver) Close(ctx context.Context) error {
	defer d.c.http.CloseIdleConnections()
	if d.c.token == "" || d.c.session == "" {
		return nil
	}
	d.c.requests = 0
	a, err := d.c.do(ctx, http.MethodDelete, d.c.session, nil, nil)
	d.c.token, d.c.session = "", ""
	switch {
	case err != nil:
		return err
	case a.status >= 300 && a.status != http.StatusNotFound && a.status != http.StatusUnauthorized:
		return statusFault(http.MethodDelete, "session", a)
	}
	return nil
}
