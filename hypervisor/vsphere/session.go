package vsphere

import (
	"context"
	"crypto/tls"
	"errors"
	"net/url"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	our "rerack.dev/rerack/internal/fault"
)

// place is a login and what does not move: where the host and its things are in the inventory.
type place struct {
	vim      *vim25.Client
	sessions *session.Manager
	props    *property.Collector
	host     *object.HostSystem
	hostName string
	vmFolder *object.Folder // of the host's datacenter
	pool     *object.ResourcePool
	network  types.ManagedObjectReference // HostNetworkSystem
	storage  types.ManagedObjectReference // HostStorageSystem
}

// place returns the login, and logs in when there is none any more.
func (h *Host) place(ctx context.Context) (*place, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.at != nil {
		user, err := h.at.sessions.UserSession(ctx)
		if err == nil && user != nil {
			return h.at, nil
		}
		if err != nil {
			return nil, kinded(ctx, "look at the session", err)
		}
		h.at = nil
	}
	p, err := h.login(ctx)
	if err == nil {
		h.at = p
	}
	return p, err
}

func (h *Host) login(ctx context.Context) (*place, error) {
	u, err := url.Parse(h.cfg.URL)
	if err != nil {
		return nil, &our.Error{Kind: our.Invalid, What: "vsphere host url", Err: err}
	}
	u.Path = "/sdk"
	sc := soap.NewClient(u, false)
	t := sc.DefaultTransport()
	t.Proxy, t.DialTLSContext, t.TLSClientConfig = nil, nil, h.cfg.TLS.Clone()
	vim, err := vim25.NewClient(ctx, sc)
	if err != nil {
		return nil, kinded(ctx, "connect", err)
	}
	p := &place{vim: vim, sessions: session.NewManager(vim), props: property.DefaultCollector(vim)}
	user, password, err := h.cfg.Login(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.sessions.Login(ctx, url.UserPassword(user, password)); err != nil {
		return nil, kinded(ctx, "log in", err)
	}
	if err := p.find(ctx, h.cfg); err != nil {
		_ = p.sessions.Logout(ctx) // the first error counts
		return nil, kinded(ctx, "find the host", err)
	}
	return p, nil
}

// find looks the host up by its name.
func (p *place) find(ctx context.Context, c Config) error {
	v, err := view.NewManager(p.vim).CreateContainerView(ctx, p.vim.ServiceContent.RootFolder, []string{"HostSystem"}, true)
	if err != nil {
		return err
	}
	defer func() { _ = v.Destroy(ctx) }() // goes with the session
	var hosts []mo.HostSystem
	if err := v.Retrieve(ctx, []string{"HostSystem"}, []string{"name", "parent", "configManager"}, &hosts); err != nil {
		return err
	}
	var found []mo.HostSystem
	for _, x := range hosts {
		if c.Host == "" || x.Name == c.Host {
			found = append(found, x)
		}
	}
	if len(found) != 1 {
		return our.Newf(our.NotFound, "%d hosts of name %q in the inventory", len(found), c.Host)
	}
	x := found[0]
	if x.Parent == nil || x.ConfigManager.NetworkSystem == nil || x.ConfigManager.StorageSystem == nil {
		return our.Newf(our.Unsupported, "host %s shows no networks or storage: it may be disconnected", x.Name)
	}
	p.host, p.hostName = object.NewHostSystem(p.vim, x.Self), x.Name
	p.network, p.storage = *x.ConfigManager.NetworkSystem, *x.ConfigManager.StorageSystem
	var compute mo.ComputeResource
	if err := p.props.RetrieveOne(ctx, *x.Parent, []string{"resourcePool", "parent"}, &compute); err != nil {
		return err
	}
	if compute.ResourcePool == nil {
		return our.Newf(our.Unsupported, "host %s has no resource pool", x.Name)
	}
	p.pool = object.NewResourcePool(p.vim, *compute.ResourcePool)
	for at := compute.Parent; at != nil; {
		if at.Type == "Datacenter" {
			var dc mo.Datacenter
			if err := p.props.RetrieveOne(ctx, *at, []string{"vmFolder"}, &dc); err != nil {
				return err
			}
			p.vmFolder = object.NewFolder(p.vim, dc.VmFolder)
			return nil
		}
		var e mo.ManagedEntity
		if err := p.props.RetrieveOne(ctx, *at, []string{"parent"}, &e); err != nil {
			return err
		}
		at = e.Parent
	}
	return our.Newf(our.Unsupported, "host %s is in no datacenter", x.Name)
}

// kinded gives an error of the library its kind.
func kinded(ctx context.Context, what string, err error) error {
	var ours *our.Error
	if err == nil {
		return nil
	}
	if errors.As(err, &ours) {
		return our.Wrap(err, what, "")
	}
	return &our.Error{Kind: kindOf(ctx, err), What: what, Err: err}
}

func kindOf(ctx context.Context, err error) our.Kind {
	is := func(f types.BaseMethodFault) bool { return fault.Is(err, f) }
	var untrusted *tls.CertificateVerificationError
	switch {
	case ctx.Err() != nil:
		return our.Timeout
	case errors.As(err, &untrusted), is(&types.InvalidLogin{}), is(&types.NotAuthenticated{}), is(&types.NoPermission{}):
		return our.Unauthorized
	case is(&types.ManagedObjectNotFound{}), is(&types.DuplicateName{}), is(&types.InvalidPowerState{}), is(&types.TaskInProgress{}), is(&types.InvalidState{}),
		is(&types.ConcurrentAccess{}), is(&types.ResourceInUse{}):
		return our.Busy // somebody else changed it since it was read
	case is(&types.InsufficientResourcesFault{}):
		return our.Conflict
	case is(&types.NotSupported{}), is(&types.InvalidArgument{}), is(&types.InvalidVmConfig{}), is(&types.InvalidDeviceSpec{}), is(&types.DeviceUnsupportedForVmVersion{}):
		return our.Unsupported // definitions are made from valid values: this host cannot do it
	}
	var u *url.Error
	if errors.As(err, &u) {
		return our.Unreachable
	}
	return our.Internal
}

// background is a short time for what must be done although the call's own time is over.
func background(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
}
