// The surface of lanes: the coordinator says whose they are, and hears when there are none any more.
#include "lanes.h"
#include "napi_help.h"

namespace faultline {
namespace {

// (member, its id, host): [near, far]; host '' if all members are on one machine.
Napi::Value open_lanes(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const uint32_t self = arguments.u32(1);
  const std::string host = arguments.text(2);
  if (!arguments.ok) return arguments.env.Undefined();
  SystemFailure failure;
  const LaneAddresses addresses = lanes_open(*member, self, host, failure);
  if (failure.code != nullptr) throw_system(arguments.env, failure);
  Napi::Array pair = Napi::Array::New(arguments.env, 2);
  pair.Set(0u, addresses.near);
  pair.Set(1u, addresses.far);
  return pair;
}

// (member, slot, id, token)
void expect_peer(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const auto slot = static_cast<uint32_t>(arguments.number(1, kPeerSlots - 1));
  const uint32_t id = arguments.u32(2);
  const uint8_t* token = arguments.bytes(3, 0, kTokenBytes);
  if (arguments.ok) lanes_expect(*member, slot, id, token);
}

// (member, slot, id, address, token)
void connect_peer(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const auto slot = static_cast<uint32_t>(arguments.number(1, kPeerSlots - 1));
  const uint32_t id = arguments.u32(2);
  const std::string address = arguments.text(3);
  const uint8_t* token = arguments.bytes(4, 0, kTokenBytes);
  if (arguments.ok) lanes_connect(*member, slot, id, address, token);
}

void close_peer(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const auto slot = static_cast<uint32_t>(arguments.number(1, kPeerSlots - 1));
  const uint32_t id = arguments.u32(2);
  if (arguments.ok) lanes_close_peer(*member, slot, id);
}

void stop_lanes(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  if (arguments.ok) lanes_stop(*member);
}

Napi::Value connected(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  return Napi::Number::New(arguments.env, arguments.ok ? lanes_connected(*member) : 0);
}

Napi::Value traffic(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const LaneTraffic seen = arguments.ok ? lanes_traffic(*member) : LaneTraffic{};
  Napi::Object out = Napi::Object::New(arguments.env);
  out.Set("messagesSent", static_cast<double>(seen.messages_sent));
  out.Set("messagesReceived", static_cast<double>(seen.messages_received));
  out.Set("bytesSent", static_cast<double>(seen.bytes_sent));
  out.Set("bytesReceived", static_cast<double>(seen.bytes_received));
  return out;
}

}  // namespace

void init_lanes(Napi::Env env, Napi::Object exports) {
  exports.Set("lanesOpen", Napi::Function::New(env, open_lanes));
  exports.Set("lanesExpect", Napi::Function::New(env, expect_peer));
  exports.Set("lanesConnect", Napi::Function::New(env, connect_peer));
  exports.Set("lanesClosePeer", Napi::Function::New(env, close_peer));
  exports.Set("lanesStop", Napi::Function::New(env, stop_lanes));
  exports.Set("lanesConnected", Napi::Function::New(env, connected));
  exports.Set("laneTraffic", Napi::Function::New(env, traffic));
}

}  // namespace faultline
